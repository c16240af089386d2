"""Answers, confusion, classes and calibration against the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from tsm_jax.errors import UserError
from tsm_jax.report.calibration import calibrate
from tsm_jax.report.clips import confident_mistakes, hardest_clips
from tsm_jax.report.confusion import (
    confusion_matrix,
    most_confused,
    per_class,
)
from tsm_jax.report.results import collect


def logs(*rows):
    """Logits whose softmax is these rows."""
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


def test_a_tie_is_no_right_answer(six):
    results = collect(six)
    assert results.predicted.tolist() == [0, 1, 1, 1, 3, 1]
    assert results.correct.tolist() == [True, True, False, False, False, False]
    assert results.best(5, 3) == [1, 0, 2]
    np.testing.assert_allclose(results.scores.sum(1), 1, rtol=1e-6)


def test_scores_that_are_not_finite_are_an_error_that_names_the_clip(evaluation_of):
    evaluation = evaluation_of([[1.0, 2.0], [np.nan, 0.0]], [0, 1], names=["a.mp4", "b.mp4"])
    with pytest.raises(UserError, match="b.mp4 are not finite"):
        collect(evaluation)


def test_confusion_and_classes(six):
    results = collect(six)
    matrix = confusion_matrix(results)
    expected = [[1, 2, 0, 0], [0, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert matrix.tolist() == expected
    pairs = [(p.label, p.predicted, p.count, p.share) for p in most_confused(matrix, 2)]
    assert pairs == [(0, 1, 2, pytest.approx(2 / 3)), (2, 1, 1, 1.0)]
    a, b, c, d = per_class(results, matrix)
    assert (a.clips, a.predictions, a.top1, a.top5, a.precision) == (3, 1, 1 / 3, None, 1.0)
    assert (b.top1, b.precision, b.confused_with.predicted) == (0.5, 0.25, 3)
    assert (c.top1, c.precision, c.confused_with.predicted) == (0.0, None, 1)
    assert (d.clips, d.top1, d.top5, d.precision, d.confused_with) == (0, None, None, 0.0, None)


@pytest.mark.parametrize("num_classes", [1, 2, 10, 60])
def test_rows_are_the_class_counts_and_the_diagonal_is_top1(random_answers, num_classes):
    evaluation = random_answers(200, num_classes)
    matrix = confusion_matrix(collect(evaluation))
    counts = np.bincount(evaluation.labels, minlength=num_classes)
    np.testing.assert_array_equal(matrix.sum(1), counts)
    assert np.trace(matrix) / 200 == evaluation.metrics["top1"]
    recalls = np.diag(matrix)[counts > 0] / counts[counts > 0]
    assert recalls.mean() == pytest.approx(evaluation.metrics["mean_recall"], rel=1e-12)


@pytest.mark.parametrize(("num_classes", "defined"), [(5, False), (6, True)])
def test_top5_is_left_out_where_it_would_always_be_1(random_answers, num_classes, defined):
    results = collect(random_answers(60, num_classes))
    rows = per_class(results, confusion_matrix(results))
    assert [row.top5 is not None for row in rows] == [defined] * num_classes


def test_calibration_by_hand(evaluation_of):
    scores = logs([0.79, 0.21], [0.79, 0.21], [0.62, 0.38], [0.38, 0.62])
    calibration = calibrate(collect(evaluation_of(scores, [0, 1, 0, 0])), num_bins=10)
    filled = [(b.count, b.confidence, b.accuracy) for b in calibration.bins if b.count]
    assert filled == [(2, pytest.approx(0.62), 0.5), (2, pytest.approx(0.79), 0.5)]
    assert all(b.low < b.confidence <= b.high for b in calibration.bins if b.count)
    assert calibration.expected_error == pytest.approx(0.5 * 0.29 + 0.5 * 0.12)
    assert (calibration.confidence, calibration.accuracy) == (pytest.approx(0.705), 0.5)


def test_a_network_that_knows_its_chances_has_no_calibration_error(evaluation_of):
    rng = np.random.default_rng(0)
    right = rng.uniform(0.5, 1, 20000)
    labels = (rng.uniform(size=20000) > right).astype(int)
    calibration = calibrate(collect(evaluation_of(logs(*np.stack([right, 1 - right], 1)), labels)))
    assert calibration.expected_error < 0.02
    assert sum(b.count for b in calibration.bins) == 20000


def test_the_worst_clips_come_first(six):
    results = collect(six)
    assert confident_mistakes(results, 3) == [3, 4, 2]
    assert hardest_clips(results, 3) == [3, 4, 2]
    assert hardest_clips(results, 6)[-1] == 0
