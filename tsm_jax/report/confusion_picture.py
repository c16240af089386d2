"""A confusion matrix as a picture that can be read for 10 and for 400 classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from tsm_jax.deploy.drawing import FAINT, GREY, INK, PALETTE, PAPER, font, text

_MARGIN = 24
_TITLE = 64  # height of the lines on top
_LABEL_WIDTH = 230  # longest name, pixels at the largest letters
# Side of a cell and of its letters, pixels, for matrices of up to so many classes.
_SIZES = ((12, 56, 16), (24, 40, 15), (40, 28, 13), (120, 17, 12), (None, 12, 10))
_COUNTED = 40  # up to so many classes the cells have their counts written in
_RIGHT, _WRONG = PALETTE[0], PALETTE[1]
_LINES_EVERY = 10  # classes, where cells are too small for a line each


def draw_confusion(matrix: np.ndarray, class_names: Sequence[str]) -> Image.Image:
    """Rows are right classes, columns predicted ones; the stronger, the larger the row's share.

    Right answers (the diagonal) are blue and wrong ones orange, so that a single mistake among
    many clips is seen. With 400 classes the picture has about 5,000 pixels a side: zoom in.

    Args:
        matrix: int `[K, K]`.
        class_names: K names.
    """
    count = len(matrix)
    cell, letters = next((c, f) for most, c, f in _SIZES if most is None or count <= most)
    widest = max(font(letters).getlength(name) for name in class_names)
    names = round(min(widest, _LABEL_WIDTH * letters / 16)) + 10
    left, top = _MARGIN + names, _MARGIN + _TITLE + names
    side = count * cell
    canvas = Image.new("RGB", (max(left + side + _MARGIN, 560), top + side + _MARGIN), PAPER)
    cells = Image.fromarray(_colors(matrix)).resize((side, side), Image.Resampling.NEAREST)
    canvas.paste(cells, (left, top))
    draw = ImageDraw.Draw(canvas)
    _draw_lines(draw, count, cell, left, top)
    for k, name in enumerate(class_names):
        middle = (k + 0.5) * cell
        text(draw, (left - 6, top + middle), name, size=letters, anchor="rm", width=names - 10)
        _draw_upright(canvas, (left + middle, top - 6), name, letters, names - 10)
    if count <= _COUNTED:
        _draw_counts(draw, matrix, cell, left, top)
    _draw_title(draw, matrix)
    return canvas


def _colors(matrix: np.ndarray) -> np.ndarray:
    """uint8 `[K, K, 3]`."""
    rows = matrix.sum(1, keepdims=True)
    share = matrix / np.maximum(rows, 1)
    strength = np.where(matrix > 0, 0.25 + 0.75 * np.sqrt(share), 0)[..., None]  # one clip is seen
    diagonal = np.eye(len(matrix), dtype=bool)[..., None]
    full = np.where(diagonal, ImageColor.getrgb(_RIGHT), ImageColor.getrgb(_WRONG))
    empty = np.where(rows[..., None] > 0, ImageColor.getrgb(PAPER), ImageColor.getrgb("#f3f4f6"))
    return np.round(empty * (1 - strength) + full * strength).astype(np.uint8)


def _draw_lines(draw: ImageDraw.ImageDraw, count: int, cell: int, left: int, top: int) -> None:
    step = 1 if count <= _COUNTED else _LINES_EVERY
    for i in [*range(0, count, step), count]:
        offset = i * cell
        draw.line((left + offset, top, left + offset, top + count * cell), fill=FAINT)
        draw.line((left, top + offset, left + count * cell, top + offset), fill=FAINT)


def _draw_upright(
    canvas: Image.Image, foot: tuple[float, float], name: str, letters: int, width: int
) -> None:
    """Writes a name from bottom to top, its beginning at `foot`."""
    height = letters + 4
    label = Image.new("RGB", (width, height), PAPER)
    text(ImageDraw.Draw(label), (0, height / 2), name, size=letters, width=width)
    turned = label.transpose(Image.Transpose.ROTATE_90)
    canvas.paste(turned, (round(foot[0] - height / 2), round(foot[1] - width)))


def _draw_counts(
    draw: ImageDraw.ImageDraw, matrix: np.ndarray, cell: int, left: int, top: int
) -> None:
    rows = matrix.sum(1)
    for i, j in zip(*np.nonzero(matrix), strict=True):
        middle = (left + (j + 0.5) * cell, top + (i + 0.5) * cell)
        color = PAPER if matrix[i, j] > 0.45 * rows[i] else INK
        size = 18 if cell > 45 else 12
        text(draw, middle, str(matrix[i, j]), size=size, color=color, anchor="mm")


def _draw_title(draw: ImageDraw.ImageDraw, matrix: np.ndarray) -> None:
    right, clips = int(np.trace(matrix)), int(matrix.sum())
    title = f"Confusion matrix: {right} of {clips} clips right"
    text(draw, (_MARGIN, _MARGIN + 10), title, size=20)
    x, y = _MARGIN, _MARGIN + 40
    for color, words in ((_RIGHT, "right"), (_WRONG, "wrong")):
        draw.rounded_rectangle((x, y - 6, x + 12, y + 6), 3, fill=color)
        text(draw, (x + 18, y), words, size=14, color=GREY)
        x += 74
    note = "rows: right class, columns: predicted class"
    text(draw, (x, y), f"{note}; by share of the row", size=14, color=GREY)
