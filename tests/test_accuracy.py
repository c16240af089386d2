"""Accuracy metrics that expose constant answers."""

from __future__ import annotations

import numpy as np
import pytest

from tsm_jax.accuracy import class_metrics, in_words, warning

NAMES = ["assault", "fall", "fire", "normal"]
SIZES = [60, 50, 45, 341]  # 68.75 % of the 496 clips are in the last class


def metrics_of(sizes, right, answers):
    counts = np.array([sizes, right, answers])
    top1 = sum(right) / sum(sizes)
    return {"top1": top1, "count": sum(sizes), **class_metrics(counts)}


def test_metrics_of_a_constant_answer():
    metrics = metrics_of(SIZES, [0, 0, 0, 341], [0, 0, 0, 496])
    assert metrics == {
        "top1": 0.6875,
        "count": 496,
        "mean_recall": 0.25,
        "classes_without_clips": 0,
        "largest_class": 3,
        "largest_class_share": 0.6875,
        "most_answered_class": 3,
        "most_answered_share": 1.0,
    }
    assert in_words(metrics) == "top1 0.68750  mean_recall 0.25000  largest_class_share 0.68750"
    assert warning(metrics, NAMES) == (
        "top-1 0.6875 is not above the share of the largest class, 0.6875 (3: 'normal'): the"
        " network is not yet better than always answering this class; 100.0% of its answers are"
        " 3: 'normal'"
    )


def test_no_warning_if_top1_exceeds_a_constant_answer_by_one_clip():
    assert not warning(metrics_of(SIZES, [1, 0, 0, 341], [1, 0, 0, 495]), NAMES)
    below = metrics_of(SIZES, [0, 0, 45, 280], [0, 0, 80, 416])
    assert "top-1 0.6552 is not above" in warning(below, NAMES)
    assert "it knows other classes too" in warning(below, NAMES)
    assert "83.9% of its answers are 3" in warning(below, NAMES)


def test_classes_without_clips_are_excluded_from_mean_recall():
    metrics = metrics_of([10, 0, 30, 0], [5, 0, 30, 0], [5, 0, 35, 0])
    assert metrics["mean_recall"] == 0.75
    assert "mean_recall 0.75000 (2 classes without clips)" in in_words(metrics)


def test_warning_when_all_clips_are_of_one_class():
    metrics = metrics_of([0, 9, 0, 0], [0, 9, 0, 0], [0, 9, 0, 0])
    assert warning(metrics, NAMES).startswith("all clips are of one class (1: 'fall'):")


def test_non_finite_scores_do_not_count_as_answers():
    assert not warning(metrics_of(SIZES, [0] * 4, [0] * 4), NAMES)


def test_class_names_are_escaped():
    metrics = metrics_of([1, 3], [0, 3], [0, 4])
    assert "(1: 'a\\x1b[2J\\x0ab')" in warning(metrics, ["x", "a\x1b[2J\nb"])


@pytest.mark.parametrize("top5", [{}, {"top5": 0.8125}])
def test_metrics_of_older_versions_lack_some_values(top5):
    metrics = {"loss": 1.9, "top1": 0.3325, **top5, "count": 400}
    assert in_words(metrics) == "top1 0.33250" + ("  top5 0.81250" if top5 else "")
    assert not warning(metrics, NAMES)
