"""Draws the pictures of a report, as PNG files in memory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from tsm_jax.figures import COLORS, GREY, add_grid, draw_png, short
from tsm_jax.report.statistics import Calibration, Curves

_CORRECT, _WRONG = COLORS[:2]
_OVERCONFIDENT = "#f2b48a"
_LABELLED = 120  # classes; with more, the axes show numbers instead of names
_COUNTED = 40  # classes; with more, the cells are too small for counts
_NAME_LENGTH = 28  # characters
_SIDE, _GAP, _IN_ROW = 128, 4, 8  # of a frame and between frames, in pixels; frames per row


def draw_confusion(matrix: np.ndarray, class_names: Sequence[str]) -> bytes:
    """Draws a confusion matrix, int `[K, K]`: rows are true classes, columns predicted ones.

    Correct answers (the diagonal) are blue, wrong ones orange. Colors are stronger for larger
    shares of the row, but never too pale to see a single clip among many.
    """
    count = len(matrix)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.imshow(_colors(matrix), interpolation="nearest")
        axes.set_title(f"{np.trace(matrix)} of {matrix.sum()} clips correct")
        axes.set(xlabel="predicted class", ylabel="true class")
        if count <= _LABELLED:
            names = [_tick(k, name) for k, name in enumerate(class_names)]
            size = 9 if count <= _COUNTED else 6
            axes.set_xticks(range(count), names, rotation=90, fontsize=size)
            axes.set_yticks(range(count), names, fontsize=size)
        else:
            axes.set(xlabel="number of the predicted class", ylabel="number of the true class")
        if count <= _COUNTED:
            for i, j in zip(*np.nonzero(matrix), strict=True):
                color = "white" if matrix[i, j] > 0.45 * matrix[i].sum() else "black"
                place = {"ha": "center", "va": "center", "in_layout": False}
                axes.text(j, i, str(matrix[i, j]), color=color, fontsize=8, **place)

    cell = 0.34 if count <= _COUNTED else 0.12 if count <= _LABELLED else 0.034  # inches
    side = 2.6 + max(count, 8) * cell
    return draw_png(side, side, draw)


def _tick(label: int, name: str) -> str:
    if not name.isascii():  # this machine may lack a font for it
        name = f"{label} {name}"
    return short(name, _NAME_LENGTH)


def _colors(matrix: np.ndarray) -> np.ndarray:
    """Returns RGB from 0 to 1, `[K, K, 3]`; rows without clips are grey."""
    rows = matrix.sum(1, keepdims=True)
    strength = np.where(matrix > 0, 0.25 + 0.75 * np.sqrt(matrix / np.maximum(rows, 1)), 0)
    diagonal = np.eye(len(matrix), dtype=bool)[..., None]
    full = np.where(diagonal, to_rgb(_CORRECT), to_rgb(_WRONG))
    empty = np.where(rows[..., None] > 0, 1, 0.95)
    return empty + strength[..., None] * (full - empty)


def draw_calibration(calibration: Calibration) -> bytes:
    """Draws the reliability diagram, and below it the number of clips by confidence."""

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
        counts, confidences, accuracies, error = calibration
        left, width = np.arange(len(counts)) / len(counts), 0.95 / len(counts)
        gaps = np.maximum(confidences - accuracies, 0)
        upper.bar(left, accuracies, width, align="edge", color=_CORRECT, label="accuracy")
        over = {"color": _OVERCONFIDENT, "label": "overconfident by"}
        upper.bar(left, gaps, width, accuracies, align="edge", **over)
        upper.plot([0, 1], [0, 1], color="black", label="perfect calibration")
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        upper.set_title(f"Expected calibration error {error:.3f}")
        figure.legend(loc="outside upper center", ncols=3)
        lower.bar(left, counts, width, align="edge", color=GREY)
        lower.set(xlabel="confidence: score of the predicted class", ylabel="clips")
        add_grid(upper, lower)

    return draw_png(6, 6, draw)


def draw_frames_seen(accuracies: np.ndarray) -> bytes:
    """Plots top-1 after 1, 2, ..., T frames of a clip, float `[T]`."""
    seen = np.arange(1, len(accuracies) + 1)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(seen, accuracies, marker="o", color=_CORRECT)
        if len(seen) <= _IN_ROW:
            for count, accuracy in zip(seen, accuracies, strict=True):
                place = {"textcoords": "offset points", "xytext": (0, 8), "ha": "center"}
                axes.annotate(f"{accuracy:.3f}", (count, accuracy), fontsize=9, **place)
            axes.set_xticks(seen)
        axes.set(ylim=(0, 1.08), ylabel="top-1", xlabel=f"frames seen, of {len(seen)}")
        add_grid(axes)

    return draw_png(6, 4, draw)


def draw_curves(curves: Curves, others: Mapping[str, Curves] | None = None) -> bytes:
    """Plots learning curves from `read_curves`, side by side; other runs, by name, are dashed."""
    runs = {"": curves, **(others or {})}

    def draw(figure: Figure) -> None:
        for axes, title in zip(
            figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True
        ):
            for run, found in runs.items():
                for color, kind in zip(COLORS, ("training", "validation"), strict=False):
                    if (points := found.get(title, {}).get(kind)) is not None:
                        name = f"{kind}, {short(run, _NAME_LENGTH)}" if run else kind
                        style = {"linestyle": "--" if run else "-", "marker": "x" if run else "."}
                        axes.plot(*points, color=color, label=name, **style)
            axes.set(title=title, xlabel="epoch")
            axes.set_xlim(left=0)
            axes.legend()
            add_grid(axes)

    return draw_png(4.6 * len(curves), 3.6, draw)


def draw_strip(frames: np.ndarray) -> bytes:
    """Draws frames, uint8 `[T, S, S, 3]`, side by side, eight per row."""
    columns = min(len(frames), _IN_ROW)
    step = _SIDE + _GAP
    size = (columns * step - _GAP, -(-len(frames) // columns) * step - _GAP)
    strip = Image.new("RGB", size, "white")
    for i, frame in enumerate(frames):
        image = Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        strip.paste(image, (i % columns * step, i // columns * step))
    file = io.BytesIO()
    strip.save(file, "PNG")
    return file.getvalue()
