"""Which classes are taken for which, and how well each one is recognised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tsm_jax.report.results import Results


def confusion_matrix(results: Results) -> np.ndarray:
    """Number of clips of class i (row) that are taken for class j (column), int64 `[K, K]`."""
    num_classes = len(results.class_names)
    cells = results.labels.astype(np.int64) * num_classes + results.predicted
    counts = np.bincount(cells, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Confusion:
    """Clips of class `label` that are taken for class `predicted`.

    Attributes:
        count: of them.
        share: of the clips of `label`.
    """

    label: int
    predicted: int
    count: int
    share: float


def most_confused(matrix: np.ndarray, most: int) -> list[Confusion]:
    """The largest cells off the diagonal, by count and then by share; empty ones are left out."""
    rows = matrix.sum(1)
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    labels, predicted = np.nonzero(off)
    counts = off[labels, predicted]
    shares = counts / rows[labels]
    order = np.lexsort((predicted, labels, -shares, -counts))[:most]
    return [
        Confusion(int(labels[i]), int(predicted[i]), int(counts[i]), float(shares[i]))
        for i in order
    ]


@dataclass(frozen=True)
class ClassResult:
    """One class.

    Attributes:
        label: its number.
        name: its name.
        clips: of this class.
        predictions: clips that are taken for this class.
        top1: share of its clips that are recognised (recall); None without clips.
        top5: share of its clips with it among the best five; None without clips, and with five
            classes or fewer, where it would be 1 whatever the answers are.
        precision: share of right ones among `predictions`; None without any.
        confused_with: the class that its clips are most often taken for; None if for none.
    """

    label: int
    name: str
    clips: int
    predictions: int
    top1: float | None
    top5: float | None
    precision: float | None
    confused_with: Confusion | None


def per_class(results: Results, matrix: np.ndarray) -> list[ClassResult]:
    """All K classes, in the order of the labels."""
    num_classes = len(results.class_names)
    in_five = np.bincount(results.labels[results.ranks < 5], minlength=num_classes)
    rows = []
    for k, name in enumerate(results.class_names):
        clips, predictions = int(matrix[k].sum()), int(matrix[:, k].sum())
        right = int(matrix[k, k])
        row = matrix[k].copy()
        row[k] = 0
        other, count = int(row.argmax()), int(row.max())
        rows.append(
            ClassResult(
                label=k,
                name=name,
                clips=clips,
                predictions=predictions,
                top1=right / clips if clips else None,
                top5=int(in_five[k]) / clips if clips and num_classes > 5 else None,
                precision=right / predictions if predictions else None,
                confused_with=Confusion(k, other, count, count / clips) if count else None,
            )
        )
    return rows
