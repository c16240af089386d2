"""Compares two evaluations of the same clips: is one better, or is it chance?"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

from tsm_jax.accuracy import wilson_interval
from tsm_jax.errors import UserError
from tsm_jax.files import read_text
from tsm_jax.models.architecture import MAX_CLASSES
from tsm_jax.report.results import Evaluation
from tsm_jax.terminal import printable
from tsm_jax.weights.labels import check_same_order

PREDICTIONS_FILE = "predictions.csv"


@dataclass(frozen=True)
class Answers:
    """Which of N clips were classified correctly."""

    name: str
    clips: Sequence[tuple[str, int]]  # names and labels of the N clips
    class_names: Sequence[str]  # in the order of the labels, as far as known
    correct: np.ndarray  # bool `[N]`

    def summary(self) -> str:
        """Returns top-1 and its confidence interval, on one line."""
        right, count = int(self.correct.sum()), len(self.correct)
        low, high = wilson_interval(right, count)
        return (
            f"{printable(self.name)}: top1 {right / count:.5f} on {count} clips, 95 % interval:"
            f" {low:.5f} to {high:.5f}"
        )


@dataclass(frozen=True)
class Comparison:
    """How many clips both evaluations got right, only one of them, or neither."""

    names: tuple[str, str]
    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def difference(self) -> float:
        """Top-1 of the first minus top-1 of the second."""
        count = self.both + self.only_first + self.only_second + self.neither
        return (self.only_first - self.only_second) / count

    @property
    def p_value(self) -> float:
        """Probability of at least this difference by chance, if both are equally good.

        Reference: McNemar 1947, the exact two-sided test: under that assumption, a clip that only
        one of the two gets right is equally likely to be the first's or the second's.
        """
        fewer = min(self.only_first, self.only_second)
        return min(1.0, 2 * float(bdtr(fewer, self.only_first + self.only_second, 0.5)))

    def lines(self) -> list[str]:
        """Returns the comparison in words, for the terminal."""
        first, second = map(printable, self.names)
        better = first if self.difference > 0 else second
        verdict = f"{better} is better" if self.p_value < 0.05 else "this may well be chance"
        return [
            f"right: both {self.both} clips, only {first} {self.only_first},"
            f" only {second} {self.only_second}, neither {self.neither}",
            f"top1 of {first} minus that of {second}: {self.difference:+.5f}; exact McNemar test:"
            f" p = {self.p_value:.4g}, {verdict}",
        ]


def compare(one: Evaluation | Answers, other: Evaluation | Answers) -> Comparison:
    """Compares two evaluations clip by clip.

    Raises:
        UserError: they do not have the same clips in the same order, and the same classes.
    """
    first, second = _answers(one), _answers(other)
    if len(first.clips) != len(second.clips):
        raise UserError(
            f"{first.name} was evaluated on {len(first.clips)} clips, {second.name} on"
            f" {len(second.clips)}: compare on the same list"
        )
    for a, b in zip(first.clips, second.clips, strict=True):
        if a != b:
            raise UserError(
                f"{first.name} and {second.name} were not evaluated on the same list: one has the"
                f" clip {printable(a[0])} with label {a[1]}, the other {printable(b[0])} with label"
                f" {b[1]} in its place"
            )
    check_same_order(first.class_names, first.name, second.class_names, second.name)
    right, also = first.correct, second.correct
    parts = (right & also, right & ~also, ~right & also, ~right & ~also)
    return Comparison((first.name, second.name), *(int(part.sum()) for part in parts))


def _answers(evaluation: Evaluation | Answers) -> Answers:
    if isinstance(evaluation, Answers):
        return evaluation
    clips = list(zip(evaluation.short_names, evaluation.labels.tolist(), strict=True))
    return Answers(evaluation.weights, clips, evaluation.class_names, evaluation.correct)


def is_report(path: str) -> bool:
    """Returns whether a path is the folder of a report."""
    return os.path.isfile(os.path.join(path, PREDICTIONS_FILE))


def read_answers(folder: str) -> Answers:
    """Reads the answers of a report.

    Raises:
        UserError: its table is damaged.
    """
    path = os.path.join(folder, PREDICTIONS_FILE)
    text = read_text(path, "the predictions", errors="surrogateescape")
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        clips = [(row["clip"], int(row["label"])) for row in rows]
        marks = [{"0": False, "1": True}[row["correct"]] for row in rows]
        names = {int(row["label"]): row["class"] for row in rows}
    except (KeyError, TypeError, ValueError, csv.Error):
        rows, clips, marks, names = [], [], [], {}
    if not rows or not all(0 <= label < MAX_CLASSES for label in names):
        raise UserError(f"{path} is not the table of a report: write the report again")
    known = [names.get(label, f"class {label}") for label in range(max(names) + 1)]
    return Answers(folder, clips, known, np.array(marks))
