"""The report's tables as files: for a spreadsheet, for NumPy, for another program."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tsm_jax.files import write_json
from tsm_jax.report.confusion import ClassResult
from tsm_jax.report.results import Results

METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.csv"
SCORES_FILE = "scores.npy"
CLASSES_FILE = "per_class.csv"
CONFUSION_FILE = "confusion.csv"
TOP = 5


def write_metrics(folder: str, metrics: dict[str, Any]) -> None:
    """Writes `metrics.json`."""
    write_json(os.path.join(folder, METRICS_FILE), metrics)


def write_predictions(folder: str, results: Results) -> None:
    """Writes `predictions.csv`, a line a clip in the order of the list, and `scores.npy`.

    The latter has all scores, float32 `[N, K]`, in the order of those lines and of the labels.
    """
    top = min(TOP, len(results.class_names))
    head = ["clip", "label", "class", "correct", "score_of_class"]
    head += [f"top{n}_{part}" for n in range(1, top + 1) for part in ("label", "class", "score")]

    def lines() -> Iterable[list[Any]]:
        for i, name in enumerate(results.names):
            label, scores = int(results.labels[i]), results.scores[i]
            line = [name, label, results.class_names[label], int(results.correct[i])]
            line.append(_score(scores[label]))
            for k in results.best(i, top):
                line += [k, results.class_names[k], _score(scores[k])]
            yield line

    _write(folder, PREDICTIONS_FILE, head, lines())
    np.save(os.path.join(folder, SCORES_FILE), results.scores.astype(np.float32))


def write_classes(folder: str, classes: Sequence[ClassResult], class_names: Sequence[str]) -> None:
    """Writes `per_class.csv`, a line a class; what cannot be said without clips is empty."""
    head = ["label", "class", "clips", "top1", "top5", "predictions", "precision"]
    head += ["most_confused_with", "confused_clips"]

    def line(row: ClassResult) -> list[Any]:
        other = row.confused_with
        shares = [_share(row.top1), _share(row.top5), row.predictions, _share(row.precision)]
        confused = [class_names[other.predicted], other.count] if other else ["", ""]
        return [row.label, row.name, row.clips, *shares, *confused]

    _write(folder, CLASSES_FILE, head, map(line, classes))


def write_confusion(folder: str, matrix: np.ndarray, class_names: Sequence[str]) -> None:
    """Writes `confusion.csv`: a line a right class, a column a predicted class."""
    lines = ([name, *map(int, row)] for name, row in zip(class_names, matrix, strict=True))
    _write(folder, CONFUSION_FILE, ["class", *class_names], lines)


def _write(folder: str, name: str, head: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    # Names of files need not be UTF-8; they are written as the bytes they are.
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(lines)


def _score(value: np.floating) -> str:
    return f"{value:.6g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"
