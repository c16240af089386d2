"""Where a training clip is cropped: rectangles drawn at random, with NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MULTI_SCALES = (1, 0.875, 0.75, 0.66)

# The 13 places of a multi-scale crop as (x, y) in quarters of the free space: corners, centre,
# middles of the edges, then the quarters' corners (the order of the references).
PLACES = (
    *((0, 0), (4, 0), (0, 4), (4, 4), (2, 2)),
    *((0, 2), (4, 2), (2, 4), (2, 0)),
    *((1, 1), (3, 1), (1, 3), (3, 3)),
)


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle inside a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


def draw_multi_scale_crop(
    height: int,
    width: int,
    crop_size: int,
    rng: np.random.Generator,
    scales: Sequence[float] = MULTI_SCALES,
) -> Crop:
    """Draws a shape (sides from `scales` of the short side) and one of 13 places.

    The two sides are at most one scale apart; a side within 2 px of `crop_size` becomes
    `crop_size`, but never more than the picture has. Places are uniform even where they coincide.

    Reference: PaddleVideo pipelines/augmentations.py `MultiScaleCrop(allow_duplication=True)`,
    which steps by a float quarter of the free space; Pillow's `crop` then rounds half to even. (At
    such a half its right edge can end up one pixel off; here the sides keep their length. MIT and
    mmaction2 step by an integer.)
    """
    short_side = min(height, width)
    sides = [_snap(int(short_side * scale), crop_size, short_side) for scale in scales]
    pairs = [(w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    crop_width, crop_height = pairs[rng.integers(len(pairs))]
    x, y = PLACES[rng.integers(len(PLACES))]
    left, top = round(x * (width - crop_width) / 4), round(y * (height - crop_height) / 4)
    return Crop(left, top, crop_width, crop_height)


def draw_pptsm_crop(
    height: int,
    width: int,
    crop_size: int,
    rng: np.random.Generator,
    scales: Sequence[float] = MULTI_SCALES,
) -> Crop:
    """Draws what PP-TSM's three steps leave of a picture, in pixels of the picture itself.

    It is scaled to 4:3 with a short side of 8/7 of `crop_size` (256 for 224); a multi-scale crop is
    scaled to a square of that side; a random square of `crop_size` is cut out. What is seen is then
    up to 7/8 of the short side, and of pictures wider than 4:3 it is narrowed. One rectangle,
    resized once, shows the same; its sides are rounded to pixels.

    Reference: the training transforms of PaddleVideo's pptsm_*.yaml (`Scale`, `MultiScaleCrop`,
    `RandomCrop`), whose `allow_duplication=False` leaves out some places that coincide.
    """
    side = round(crop_size * 8 / 7)
    scaled_height, scaled_width = fixed_ratio(height, width, side)
    outer = draw_multi_scale_crop(scaled_height, scaled_width, side, rng, scales)
    x, y = rng.integers(side - crop_size + 1, size=2)

    def place(first: int, length: int, inner: int, share: float, limit: int) -> tuple[int, int]:
        start = (first + inner * length / side) * share
        size = min(max(1, round(crop_size * length / side * share)), limit)
        return min(round(start), limit - size), size

    left, new_width = place(outer.left, outer.width, int(x), width / scaled_width, width)
    top, new_height = place(outer.top, outer.height, int(y), height / scaled_height, height)
    return Crop(left, top, new_width, new_height)


# By `config.data.crop`.
TRAINING_CROPS = {"multi_scale": draw_multi_scale_crop, "pptsm": draw_pptsm_crop}


def fixed_ratio(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width that `transforms.resize_fixed_ratio` gives a picture."""
    if min(height, width) == short_side:
        return height, width
    long_side = int(short_side * 4 / 3)
    return (long_side, short_side) if width <= height else (short_side, long_side)


def _snap(side: int, crop_size: int, short_side: int) -> int:
    if abs(side - crop_size) < 3:
        side = crop_size
    return max(1, min(side, short_side))
