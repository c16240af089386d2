"""Statistics of an evaluation: confusion between classes, results by class and calibration; and
learning curves of a run, from the log in its workdir."""

from __future__ import annotations

import json
import math
import os
from typing import Any, NamedTuple

import numpy as np

from tsm_jax.files import read_text
from tsm_jax.report.results import Evaluation
from tsm_jax.training.log import METRICS_FILE

BINS = 15
Curves = dict[str, dict[str, np.ndarray]]
_METRICS = {"loss": "loss", "top1": "top-1", "mean_recall": "mean recall"}
_KINDS = {"train": "training", "val": "validation"}


def confusion_matrix(evaluation: Evaluation) -> np.ndarray:
    """Counts clips of class i (rows) predicted as class j (columns), int64 `[K, K]`."""
    num_classes = len(evaluation.class_names)
    cells = evaluation.labels.astype(np.int64) * num_classes + evaluation.predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


class Confusion(NamedTuple):
    """`count` clips of class `label`, a `share` of that class, are predicted as `predicted`."""

    label: int
    predicted: int
    count: int
    share: float


def most_confused(matrix: np.ndarray, most: int) -> list[Confusion]:
    """Returns the largest nonzero cells off the diagonal, by count and then by share."""
    labels, predicted = np.nonzero(matrix - np.diag(matrix.diagonal()))
    counts = matrix[labels, predicted]
    shares = counts / matrix.sum(1)[labels]
    order = np.lexsort((predicted, labels, -shares, -counts))[:most]
    columns = (column[order].tolist() for column in (labels, predicted, counts, shares))
    return [Confusion(*row) for row in zip(*columns, strict=True)]


class ClassResult(NamedTuple):
    """One class, a row of `per_class.csv`.

    `top1` (recall) and `top5` are shares of its clips; `precision` is a share of the clips
    predicted as it. They are None if there are no such clips. With five classes or fewer, `top5`
    is None as well, because it would be 1 for any answers.
    """

    label: int
    name: str
    clips: int
    top1: float | None
    top5: float | None
    predictions: int
    precision: float | None
    most_confused_with: str | None
    confused_clips: int | None


def per_class(evaluation: Evaluation, matrix: np.ndarray) -> list[ClassResult]:
    """Returns the results of all K classes, in the order of the labels."""
    names = evaluation.class_names
    clips, predictions, correct = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    in_five = np.bincount(evaluation.labels[evaluation.ranks < 5], minlength=len(names))
    wrong = matrix - np.diag(correct)
    columns = (
        clips.tolist(),
        _shares(correct, clips),
        _shares(in_five, clips * (len(names) > 5)),
        predictions.tolist(),
        _shares(correct, predictions),
        [names[k] if row[k] else None for k, row in zip(wrong.argmax(1), wrong, strict=True)],
        [count or None for count in wrong.max(1).tolist()],
    )
    return [ClassResult(k, *row) for k, row in enumerate(zip(names, *columns, strict=True))]


def _shares(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    pairs = zip(parts.tolist(), wholes.tolist(), strict=True)
    return [part / whole if whole else None for part, whole in pairs]


class Calibration(NamedTuple):
    """Confidence and accuracy, in B bins of equal width, `(low, high]`, from 0 to 1.

    Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equations 1 to 3.
    """

    counts: np.ndarray  # clips whose best score lies in the bin, int `[B]`
    confidences: np.ndarray  # means of those scores, `[B]`; 0 without clips
    accuracies: np.ndarray  # shares of those clips that are correct, `[B]`; 0 without clips
    expected_error: float  # mean over clips of |accuracy - confidence| in their bin (ECE)


def calibrate(evaluation: Evaluation, num_bins: int = BINS) -> Calibration:
    """Computes the calibration of the best scores."""
    scores = evaluation.confidence.astype(np.float64)
    place = np.clip(np.ceil(scores * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    confidences, accuracies = (
        np.bincount(place, weights, num_bins) / np.maximum(counts, 1)
        for weights in (scores, evaluation.correct)
    )
    error = counts @ np.abs(accuracies - confidences) / len(scores)
    return Calibration(counts, confidences, accuracies, float(error))


def read_curves(workdir: str) -> Curves:
    """Reads epochs and values, `[2, n]`, by metric and by `training` or `validation`.

    The result is empty if the folder has no log, and lacks metrics that the package did not log.
    """
    path = os.path.join(workdir, METRICS_FILE)
    if not os.path.isfile(path):
        return {}
    entries = [_entry(line) for line in read_text(path, "the log", errors="replace").splitlines()]
    # The last line of an epoch has all steps of the epoch; earlier lines have fewer.
    rates = [e["step"] / e["epoch"] for e in entries if {"step", "epoch"} <= e.keys()]
    curves: Curves = {}
    for metric, title in _METRICS.items():
        for kind, name in _KINDS.items():
            found = [e for e in entries if e.get("kind") == kind and {"step", metric} <= e.keys()]
            if found and rates:
                points = np.array([(e["step"] / max(rates), e[metric]) for e in found]).T
                curves.setdefault(title, {})[name] = points
    return curves


def _entry(line: str) -> dict[str, Any]:
    """Returns the kind and the finite numbers; nothing for the half line of a killed run."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(values, dict) or values.get("kind") not in _KINDS:
        return {}
    finite = {k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
    return {**finite, "kind": values["kind"]}
