"""Answers, confusion, classes and calibration agree with their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from tsm_jax.errors import UserError
from tsm_jax.report.statistics import calibrate, confusion_matrix, most_confused, per_class


def logs(*rows):
    """Returns logits whose softmax gives these rows."""
    return np.log(np.array(rows, np.float64))


@pytest.fixture
def six(evaluation_of):
    """Two right answers, three wrong ones, and a tie; no clip of class 3."""
    return evaluation_of(
        logs(
            [0.7, 0.1, 0.1, 0.1],
            [0.1, 0.6, 0.2, 0.1],
            [0.2, 0.5, 0.2, 0.1],
            [0.05, 0.9, 0.03, 0.02],
            [0.1, 0.1, 0.2, 0.6],
            [0.4, 0.4, 0.1, 0.1],
        ),
        [0, 1, 0, 2, 1, 0],
        class_names=["a", "b", "c", "d"],
    )


def test_a_tie_is_not_correct(six):
    assert six.predicted.tolist() == [0, 1, 1, 1, 3, 1]
    assert six.correct.tolist() == [True, True, False, False, False, False]
    assert six.best(5, 3) == [1, 0, 2]
    np.testing.assert_allclose(six.scores.sum(1), 1, rtol=1e-6)


def test_scores_that_are_not_finite_are_an_error_that_names_the_clip(evaluation_of):
    evaluation = evaluation_of([[1.0, 2.0], [np.nan, 0.0]], [0, 1], names=["a.mp4", "b.mp4"])
    with pytest.raises(UserError, match="b.mp4 are not finite"):
        _ = evaluation.scores


def test_confusion_and_classes(six):
    matrix = confusion_matrix(six)
    expected = [[1, 2, 0, 0], [0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert matrix.tolist() == expected
    pairs = [(p.label, p.predicted, p.count, p.share) for p in most_confused(matrix, 2)]
    assert pairs == [(0, 1, 2, pytest.approx(2 / 3)), (2, 1, 1, 1.0)]
    a, b, c, d = per_class(six, matrix)
    assert (a.clips, a.predictions, a.top1, a.top5, a.precision) == (3, 1, 1 / 3, None, 1.0)
    assert (a.most_confused_with, a.confused_clips) == ("b", 2)
    assert (b.top1, b.precision, b.most_confused_with) == (0.5, 0.25, "d")
    assert (c.top1, c.precision, c.most_confused_with) == (0.0, None, "b")
    assert (d.clips, d.top1, d.top5, d.precision, d.confused_clips) == (0, None, None, 0.0, None)


@pytest.mark.parametrize("num_classes", [1, 2, 10, 60])
def test_rows_are_the_class_counts_and_the_diagonal_is_top1(random_answers, num_classes):
    evaluation = random_answers(200, num_classes)
    matrix = confusion_matrix(evaluation)
    counts = np.bincount(evaluation.labels, minlength=num_classes)
    np.testing.assert_array_equal(matrix.sum(1), counts)
    assert np.trace(matrix) / 200 == evaluation.metrics["top1"]
    recalls = np.diag(matrix)[counts > 0] / counts[counts > 0]
    assert recalls.mean() == pytest.approx(evaluation.metrics["mean_recall"], rel=1e-12)


@pytest.mark.parametrize(("num_classes", "defined"), [(5, False), (6, True)])
def test_top5_is_left_out_where_it_would_always_be_1(random_answers, num_classes, defined):
    evaluation = random_answers(60, num_classes)
    rows = per_class(evaluation, confusion_matrix(evaluation))
    assert [row.top5 is not None for row in rows] == [defined] * num_classes


def test_calibration_by_hand(evaluation_of):
    scores = logs([0.79, 0.21], [0.79, 0.21], [0.62, 0.38], [0.38, 0.62])
    calibration = calibrate(evaluation_of(scores, [0, 1, 0, 0]), num_bins=10)
    assert calibration.counts.tolist() == [0, 0, 0, 0, 0, 0, 2, 2, 0, 0]
    assert calibration.confidences[6:8] == pytest.approx([0.62, 0.79])
    assert calibration.accuracies[6:8].tolist() == [0.5, 0.5]
    assert calibration.expected_error == pytest.approx(0.5 * 0.29 + 0.5 * 0.12)


def test_a_calibrated_network_has_no_calibration_error(evaluation_of):
    rng = np.random.default_rng(0)
    right = rng.uniform(0.5, 1, 20000)
    labels = (rng.uniform(size=20000) > right).astype(int)
    calibration = calibrate(evaluation_of(logs(*np.stack([right, 1 - right], 1)), labels))
    assert calibration.expected_error < 0.02
    assert calibration.counts.sum() == 20000


def test_the_worst_clips_come_first(six):
    assert six.confident_mistakes(3) == [3, 4, 2]
    assert six.hardest(3) == [3, 4, 2]
    assert six.hardest(6)[-1] == 0
