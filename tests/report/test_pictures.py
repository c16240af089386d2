"""The pictures are PNG files of a sensible size for any names and numbers."""

from __future__ import annotations

import io
import logging

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tsm_jax.report.pictures import draw_calibration, draw_confusion, draw_curves, draw_strip
from tsm_jax.report.statistics import Calibration, calibrate

BLUE, ORANGE, GAP = (0, 114, 178), (213, 94, 0), (242, 180, 138)


def pixels(png):
    assert png.startswith(b"\x89PNG")
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"), int)


def near(picture, color):
    return np.abs(picture - color).max(-1) <= 2


@pytest.mark.parametrize("count", [1, 2, 30, 50, 400])
def test_a_confusion_matrix_of_any_number_of_classes(count):
    matrix = np.diag(np.full(count, 3))
    if count > 1:
        matrix[0] = 0
        matrix[0, count - 1] = 1  # the first class is predicted as the last one
    png = draw_confusion(matrix, [f"class {k}" for k in range(count)])
    picture = pixels(png)
    assert 400 <= picture.shape[0] == picture.shape[1] <= 2500
    assert len(png) < 500_000
    correct = near(picture, BLUE).sum()
    assert correct > count * 9, "each cell has several pixels"
    if count > 1:
        assert near(picture, ORANGE).sum() == pytest.approx(correct / (count - 1), rel=0.5)


def test_no_name_fails_or_warns(recwarn, caplog, capfd):
    names = [
        "x" * 500,
        "$\\frac{_{$",
        "a_b^c",
        "打篮球 🏀",
        "\udcff.avi",
        "\u202e\x1b[1m\n\n\n",
        "",
    ]
    with caplog.at_level(logging.WARNING):
        picture = pixels(draw_confusion(np.eye(7, dtype=int), names))
    assert picture.shape[1] < 1000
    assert not recwarn.list
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_settings_of_the_user_are_neither_used_nor_changed():
    matrix = np.array([[3, 1], [0, 2]])
    plain = draw_confusion(matrix, ["a", "b"])
    with matplotlib.rc_context({"text.usetex": True, "axes.titlecolor": "red"}):
        changed = dict(matplotlib.rcParams)
        assert draw_confusion(matrix, ["a", "b"]) == plain
        assert dict(matplotlib.rcParams) == changed


def test_overconfidence_is_marked_and_underconfidence_is_not():
    def picture(confidence, accuracy):
        place = np.arange(10) == int(confidence * 10)
        bins = [np.where(place, value, 0) for value in (5, confidence, accuracy)]
        return pixels(draw_calibration(Calibration(*bins, abs(confidence - accuracy))))

    legend = near(picture(0.35, 0.9), GAP).sum()  # nothing else has this colour
    marked = near(picture(0.85, 0.3), GAP).sum()
    assert marked > 10 * legend


def test_the_calibration_of_random_answers(random_answers, recwarn):
    assert min(pixels(draw_calibration(calibrate(random_answers(50, 4)))).shape[:2]) > 400
    assert not recwarn.list


def test_curves_of_a_run_that_was_validated_once(recwarn):
    curves = {
        "loss": {"training": np.array([[0.5, 1], [2, 1]]), "validation": np.array([[1], [1.5]])},
        "top-1": {"validation": np.array([[1], [0.5]])},
    }
    height, width, _ = pixels(draw_curves(curves)).shape
    assert 300 < height < width < 2000
    assert not recwarn.list


@pytest.mark.parametrize(
    ("frames", "rows", "columns"), [(1, 1, 1), (4, 1, 4), (8, 1, 8), (16, 2, 8)]
)
def test_a_strip_has_every_frame_in_order(frames, rows, columns):
    clip = np.stack([np.full((32, 32, 3), 10 * i + 5, np.uint8) for i in range(frames)])
    strip = pixels(draw_strip(clip))[..., 0]
    step = strip.shape[0] // rows
    middles = strip[step // 2 :: step, step // 2 :: step]
    assert middles.shape == (rows, columns)
    assert middles.ravel().tolist() == [10 * i + 5 for i in range(frames)]
