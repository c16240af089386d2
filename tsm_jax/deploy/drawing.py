"""Colours, fonts and simple shapes that the pictures share."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tsm_jax.terminal import printable

PAPER, INK, GREY, FAINT = "#ffffff", "#1f2933", "#7b8794", "#e4e7eb"

# Told apart by readers of any colour vision (Okabe and Ito).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

# Dark to bright, perceived evenly; a few stops of matplotlib's inferno.
_HEAT = np.array(
    [(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)],
    np.float32,
)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, in pixels."""
    return ImageFont.load_default(size)


def text(
    draw: ImageDraw.ImageDraw,
    position: tuple[float, float],
    words: str,
    *,
    size: int = 16,
    color: str = INK,
    anchor: str = "lm",
    width: float | None = None,
) -> None:
    """Writes one line, cut with an ellipsis where it is wider than `width` pixels."""
    words, face = printable(words), font(size)
    if width is not None and draw.textlength(words, font=face) > width:
        while words and draw.textlength(words + "…", font=face) > width:
            words = words[:-1]
        words += "…"
    draw.text(position, words, fill=color, font=face, anchor=anchor)


def heat(values: np.ndarray) -> np.ndarray:
    """Values of 0 to 1, `[...]`, as colours uint8 `[..., 3]`."""
    place = np.clip(values, 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(place.astype(int), len(_HEAT) - 2)
    share = (place - low)[..., None]
    return np.round(_HEAT[low] * (1 - share) + _HEAT[low + 1] * share).astype(np.uint8)


def smooth(values: np.ndarray, size: int) -> np.ndarray:
    """A float32 map `[h, w]` enlarged to `[size, size]`."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
