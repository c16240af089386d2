"""The pictures say what the numbers say."""

from __future__ import annotations

import numpy as np
import pytest

from tsm_jax.report.calibration import Bin, Calibration
from tsm_jax.report.calibration_picture import draw_calibration
from tsm_jax.report.clips import draw_strip
from tsm_jax.report.confusion_picture import draw_confusion

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def near(pixels, color):
    return np.abs(pixels.astype(int) - color).max(-1) <= 2


def filled(pixels, color):
    """Left, top, right and bottom of what has a colour below the legend."""
    rows, columns = np.nonzero(near(pixels[96:], color))
    return columns.min(), rows.min() + 96, columns.max(), rows.max() + 96


@pytest.mark.parametrize("count", [1, 10, 30, 101, 400])
def test_a_cell_lies_where_its_classes_are(count):
    matrix = np.diag(np.ones(count, int))
    if count > 1:
        matrix[0] = 0
        matrix[0, count - 1] = 4  # first class always taken for the last one
    pixels = np.asarray(draw_confusion(matrix, [f"class {k}" for k in range(count)]))
    left, top, right, bottom = filled(pixels, BLUE)
    assert abs((right - left) - (bottom - top)) <= 2, "the diagonal is square"
    if count > 1:
        cell = (right - left + 1) / (count - 1)
        wrong = filled(pixels, ORANGE)
        assert wrong[2] == pytest.approx(right, abs=2)
        assert wrong[3] == pytest.approx(top, abs=2), "one row above the second class"
        assert wrong[2] - wrong[0] == pytest.approx(cell, abs=3)
        assert cell >= 11, "a name fits beside it"


def test_long_and_foreign_names_do_not_break_the_picture():
    names = ["x" * 500, "<script>alert(1)</script>", "打篮球", "\udcff.avi"]
    image = draw_confusion(np.eye(4, dtype=int), names)
    assert image.width < 1000


def bins(*filled):
    """Ten bins, (place, count, confidence, accuracy) of those with clips."""
    known = {place: rest for place, *rest in filled}
    return [Bin(i / 10, (i + 1) / 10, *known.get(i, (0, 0.0, 0.0))) for i in range(10)]


def test_overconfidence_is_marked_and_modesty_is_not():
    marked = (242, 180, 138)
    sure = draw_calibration(Calibration(bins((8, 5, 0.85, 0.3)), 0.55, 0.85, 0.3))
    modest = draw_calibration(Calibration(bins((3, 5, 0.35, 0.9)), 0.55, 0.35, 0.9))
    pixels = np.asarray(sure)[112:]
    bar, gap = near(pixels, BLUE).sum(), near(pixels, marked).sum()
    assert gap / bar == pytest.approx(0.55 / 0.3, rel=0.1)
    assert not near(np.asarray(modest)[112:], marked).any()


@pytest.mark.parametrize(
    ("frames", "rows", "columns"), [(1, 1, 1), (4, 1, 4), (8, 1, 8), (16, 2, 8)]
)
def test_a_strip_has_every_frame_in_order(frames, rows, columns):
    clip = np.stack([np.full((32, 32, 3), 10 * i + 5, np.uint8) for i in range(frames)])
    pixels = np.asarray(draw_strip(clip))[..., 0]
    assert pixels.shape == (rows * 132 - 4, columns * 132 - 4)
    middles = pixels[64::132, 64::132].ravel()
    assert middles.tolist() == [10 * i + 5 for i in range(frames)]
