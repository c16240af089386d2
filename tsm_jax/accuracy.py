"""Metrics from the counts of an evaluation, and their description in words.

Top-1 alone flatters a network that always gives the same answer: if 341 of 496 clips belong to one
class, it is 0.6875. The mean recall over K classes of such a network is only 1 / K.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tsm_jax.terminal import printable


def class_metrics(counts: np.ndarray) -> dict[str, float]:
    """Computes metrics from counts per class.

    Args:
        counts: int `[3, K]` from `metrics.class_sums`, of at least one clip.

    Returns:
        Metrics by name. The mean recall leaves out classes without clips, which have no recall.
    """
    clips, right, answers = counts
    seen = clips > 0
    largest, answered = int(clips.argmax()), int(answers.argmax())
    return {
        "mean_recall": float((right[seen] / clips[seen]).mean()),
        "classes_without_clips": int((~seen).sum()),
        "largest_class": largest,
        "largest_class_share": float(clips[largest] / clips.sum()),
        "most_answered_class": answered,
        "most_answered_share": float(answers[answered] / clips.sum()),
    }


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of the share `right / count` of independent clips.

    `count` must be at least 1.

    Reference: Wilson, Journal of the American Statistical Association 22 (1927), 209-212.
    """
    z = 1.959963984540054
    share, spread = right / count, z * z / count
    middle = share + spread / 2
    half = z * math.sqrt((share * (1 - share) + spread / 4) / count)
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def intervals(metrics: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Returns the `wilson_interval` of top-1 and top-5, where present in `metrics`."""
    count = metrics["count"]
    return {
        f"{name}_interval": wilson_interval(round(metrics[name] * count), count)
        for name in ("top1", "top5")
        if name in metrics
    }


def in_words(metrics: Mapping[str, Any]) -> str:
    """Formats the accuracies in `metrics` on one line; older versions stored fewer of them."""
    names = ("top1", "top5", "mean_recall", "largest_class_share")
    words = {name: f"{name} {metrics[name]:.5f}" for name in names if name in metrics}
    if empty := metrics.get("classes_without_clips"):
        words["mean_recall"] += f" ({empty} classes without clips)"
    return "  ".join(words.values())


def warning(metrics: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """Returns a warning if top-1 is no better than always answering the largest class, else ""."""
    share = metrics.get("largest_class_share")  # older versions did not store it
    if share is None or metrics["top1"] > share or not metrics["most_answered_share"]:
        return ""
    largest, answered = (
        f"{metrics[key]}: '{printable(class_names[metrics[key]])}'"
        for key in ("largest_class", "most_answered_class")
    )
    if share == 1:
        return f"all clips are of one class ({largest}): top-1 does not show whether it was learnt"
    what = "the network is not yet better than always answering this class"
    if metrics["mean_recall"] > 1 / (len(class_names) - metrics["classes_without_clips"]):
        what = "it knows other classes too, but always answering this one is right as often or more"
    return (
        f"top-1 {metrics['top1']:.4f} is not above the share of the largest class, {share:.4f}"
        f" ({largest}): {what}; {metrics['most_answered_share']:.1%} of its answers are {answered}"
    )
