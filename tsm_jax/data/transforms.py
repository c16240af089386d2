"""Cropping, resizing and flipping of uint8 RGB frames.

A clip's frames come as `Frames`: a list of T uint8[H, W, 3] of one size (where a frame repeats it
may be the same object), or uint8[T, H, W, 3]. No function changes the frames it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
from PIL import Image

Frames: TypeAlias = "Sequence[np.ndarray] | np.ndarray"

MULTI_SCALES = (1, 0.875, 0.75, 0.66)

# Parallelism comes from the threads that read clips; OpenCV's own would only compete with them.
cv2.setNumThreads(0)

# The 13 places of a multi-scale crop as (x, y) in quarters of the free space: corners, centre,
# middles of the edges, then the quarters' corners (the order of the references).
_OFFSETS = (
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
    x, y = _OFFSETS[rng.integers(len(_OFFSETS))]
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
    scaled_height, scaled_width = _fixed_ratio(height, width, side)
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


def crop_resize_flip(
    frames: Frames, crop: Crop, size: int, flip: bool, out: np.ndarray | None = None
) -> np.ndarray:
    """Cuts `crop` out of every frame, resizes it to a square and mirrors it if `flip`.

    Bilinear, or averaging areas where a side shrinks more than twice (bilinear would skip pixels).

    Returns:
        uint8[T, size, size, 3], `out` if given, which must be C-contiguous.
    """
    if out is None:
        out = np.empty((len(frames), size, size, 3), np.uint8)
    shrinks = max(crop.width, crop.height) > 2 * size
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    for frame, target in zip(frames, out, strict=True):
        view = frame[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        if view.shape == target.shape:
            target[...] = view
        else:
            cv2.resize(view, (size, size), dst=target, interpolation=interpolation)
        if flip:
            cv2.flip(target, 1, dst=target)
    return out


# Of red, green and blue in the brightness of a pixel (ITU-R BT.601), as in Pillow.
_LUMA = np.array([0.299, 0.587, 0.114])


def jitter_color(video: np.ndarray, strength: float, rng: np.random.Generator) -> None:
    """Changes brightness, contrast and saturation of uint8[T, H, W, 3], alike for all frames.

    Three factors are drawn from `[1 - strength, 1 + strength]`, so that what moves keeps its look
    from frame to frame. In place.

    Reference: torchvision's `ColorJitter`, always in the order brightness, contrast (about the mean
    brightness of the clip), saturation, and rounded once.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    grey = float(video.mean((0, 1, 2)) @ _LUMA)
    mix = saturation * np.eye(3) + (1 - saturation) * _LUMA
    offset = np.full((3, 1), brightness * (1 - contrast) * grey)
    rows = video.reshape(-1, *video.shape[2:])  # [T*H, W, 3]
    cv2.transform(rows, np.hstack([brightness * contrast * mix, offset]), dst=rows)


def resize_short_side(frames: Frames, short_side: int) -> list[np.ndarray]:
    """Resizes to `short_side` pixels on the short side and keeps the ratio (long side truncated).

    Frames whose short side is right already are returned as they are.

    Reference: PaddleVideo pipelines/augmentations.py `Scale(fixed_ratio=False)`; Pillow's
    bilinear filter, which averages when it shrinks.
    """
    height, width = frames[0].shape[:2]
    if min(height, width) == short_side:
        return list(frames)
    if width <= height:
        return _resize(frames, int(height * short_side / width), short_side)
    return _resize(frames, short_side, int(width * short_side / height))


def resize_fixed_ratio(frames: Frames, short_side: int) -> list[np.ndarray]:
    """Resizes to 4:3 whatever the ratio was, so that it may distort: 256 gives 341x256.

    The result is upright if the frames are upright or square. Frames whose short side is right
    already are returned as they are, whatever the long side.

    Reference: PaddleVideo's `Scale` by default, thus its `tools/predict.py`.
    """
    height, width = frames[0].shape[:2]
    if min(height, width) == short_side:
        return list(frames)
    return _resize(frames, *_fixed_ratio(height, width, short_side))


def center_crop(frames: Frames, size: int, out: np.ndarray | None = None) -> np.ndarray:
    """Cuts the central square out of every frame: uint8[T, size, size, 3], into `out` if given.

    Raises:
        ValueError: The frames are smaller than `size`.

    Reference: PaddleVideo's `CenterCrop` and torchvision's: offsets are rounded half to even
    (mmaction2 truncates).
    """
    width, height = _free_space(frames, size)
    left, top = round(width / 2), round(height / 2)
    return crop_resize_flip(frames, Crop(left, top, size, size), size, flip=False, out=out)


def resize_short_side_cv2(frames: Frames, short_side: int) -> list[np.ndarray]:
    """As `resize_short_side`, but with OpenCV's bilinear filter and the long side rounded.

    Reference: mmaction2's `Resize(scale=(-1, 256))`, which does not average when it shrinks.
    """
    height, width = frames[0].shape[:2]
    if min(height, width) == short_side:
        return list(frames)
    scale = short_side / min(height, width)
    size = (int(width * scale + 0.5), int(height * scale + 0.5))
    return [np.asarray(cv2.resize(f, size, interpolation=cv2.INTER_LINEAR)) for f in frames]


def one_crop(frames: Frames, size: int) -> list[np.ndarray]:
    """The centre: one uint8[T, size, size, 3]."""
    return [center_crop(frames, size)]


def truncated_center_crop(frames: Frames, size: int) -> list[np.ndarray]:
    """As `one_crop`, but an odd free space is halved down.

    Reference: mmaction2 `CenterCrop`.
    """
    return _crops(frames, size, ((1, 1),), parts=2)


def three_crops(frames: Frames, size: int) -> list[np.ndarray]:
    """Left, right and centre of the middle: three of uint8[T, size, size, 3].

    Reference: MIT ops/transforms.py `GroupFullResSample`, PaddleVideo's of the same name; they
    step by whole quarters of the free space, and show upright frames three times alike.
    """
    return _crops(frames, size, ((0, 2), (4, 2), (2, 2)))


def three_crops_of_long_side(frames: Frames, size: int) -> list[np.ndarray]:
    """Both ends and the centre of the long side: three of uint8[T, size, size, 3].

    Reference: mmaction2 `ThreeCrop`, which steps by whole halves of the free space.
    """
    height, width = frames[0].shape[:2]
    ends = ((0, 1), (2, 1), (1, 1)) if width >= height else ((1, 0), (1, 2), (1, 1))
    return _crops(frames, size, ends, parts=2)


def ten_crops(frames: Frames, size: int) -> list[np.ndarray]:
    """Four corners and the centre, each followed by its mirror image.

    Reference: MIT ops/transforms.py `GroupOverSample`, mmaction2 and PaddleVideo `TenCrop`.
    """
    crops = _crops(frames, size, _OFFSETS[:5])
    return [view for crop in crops for view in (crop, crop[:, :, ::-1])]


def _crops(
    frames: Frames, size: int, places: Sequence[tuple[int, int]], parts: int = 4
) -> list[np.ndarray]:
    """Crops at (x, y) whole parts of the free space."""
    width, height = _free_space(frames, size)
    step_x, step_y = width // parts, height // parts
    return [
        crop_resize_flip(frames, Crop(x * step_x, y * step_y, size, size), size, flip=False)
        for x, y in places
    ]


def _free_space(frames: Frames, size: int) -> tuple[int, int]:
    """Pixels of the width and of the height that a crop leaves; a ValueError if it is larger."""
    height, width = frames[0].shape[:2]
    if min(height, width) < size:
        raise ValueError(f"cannot cut {size}x{size} out of a frame of {width}x{height}")
    return width - size, height - size


def _snap(side: int, crop_size: int, short_side: int) -> int:
    if abs(side - crop_size) < 3:
        side = crop_size
    return max(1, min(side, short_side))


def _fixed_ratio(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width that `resize_fixed_ratio` gives a picture."""
    if min(height, width) == short_side:
        return height, width
    long_side = int(short_side * 4 / 3)
    return (long_side, short_side) if width <= height else (short_side, long_side)


def _resize(frames: Frames, height: int, width: int) -> list[np.ndarray]:
    size, bilinear = (width, height), Image.Resampling.BILINEAR
    return [np.asarray(Image.fromarray(frame).resize(size, bilinear)) for frame in frames]
