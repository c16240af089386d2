"""Chooses what the network sees of a clip: one frame of each of T segments; in training, a crop.

Functions for one temporal clip return indices int64[T], zero-based and in temporal order, which
repeat if the video has fewer frames than segments. Functions for several clips return their indices
one after the other, [clips * T].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tsm_jax.errors import UserError

DENSE_CLIPS = 10
_DENSE_FRAMES = 64


def random_frame_of_each_segment(
    num_frames: int, num_segments: int, rng: np.random.Generator
) -> np.ndarray:
    """Training: draws a frame uniformly from each segment of `num_frames // num_segments` frames.

    The last `num_frames % num_segments` frames are never drawn, as in the references. With fewer
    frames than segments, nothing is drawn and the frames are spread evenly.

    Reference: PaddleVideo pipelines/sample.py:270-303 (`select_left`) and MIT ops/dataset.py
    (`_sample_indices`). For short clips, both repeat frame 0, while mmaction2 spreads the frames as
    here (but rounds i*N/T, which is truncated here so as not to favour the last frame).
    """
    _check(num_frames, num_segments)
    segment = np.arange(num_segments, dtype=np.int64)
    average = num_frames // num_segments
    if average == 0:
        return segment * num_frames // num_segments
    return segment * average + rng.integers(average, size=num_segments)


def random_frame_of_whole_clip(
    num_frames: int, num_segments: int, rng: np.random.Generator
) -> np.ndarray:
    """Training: draws a frame uniformly from each of T parts, which together are the whole clip.

    The lengths of the parts differ by at most one frame. If clips have few frames per segment, the
    references' rule leaves out much of the end: with 20 frames and 8 segments, it draws from the
    first 16, while testing spreads over all 20. Short clips are spread evenly, as in
    `random_frame_of_each_segment`.
    """
    _check(num_frames, num_segments)
    starts = np.arange(num_segments + 1, dtype=np.int64) * num_frames // num_segments
    if num_frames < num_segments:
        return starts[:-1]
    return rng.integers(starts[:-1], starts[1:])


def random_dense_frames(num_frames: int, num_segments: int, rng: np.random.Generator) -> np.ndarray:
    """Training: draws one window of `dense_frames` uniformly and takes every `64//T`-th frame.

    Reference: PaddleVideo pipelines/sample.py and MIT ops/dataset.py (`dense_sample`), which never
    draw the last window.
    """
    starts, window = _dense_windows(num_frames, num_segments)
    return (rng.integers(starts) + window) % num_frames


# Values of `config.data.sampling`.
TRAINING = {
    "uniform": random_frame_of_each_segment,
    "whole": random_frame_of_whole_clip,
    "dense": random_dense_frames,
}


def middle_frame_of_each_segment(num_frames: int, num_segments: int) -> np.ndarray:
    """Testing: `int(N/T/2 + N/T*i)`, in float64 and truncated, for every N.

    Reference: MIT ops/dataset.py `_get_test_indices` and mmaction2 `SampleFrames`. PaddleVideo's
    `--test` agrees for N > T; for N <= T, it takes only frame 0.
    """
    _check(num_frames, num_segments)
    tick = num_frames / num_segments
    return (tick / 2.0 + tick * np.arange(num_segments)).astype(np.int64)


def paddle_predict_frames(num_frames: int, num_segments: int) -> np.ndarray:
    """Testing as PaddleVideo's `tools/predict.py` does: `(N//T - 1)//2 + i*(N//T)`.

    This differs from `middle_frame_of_each_segment` by a few frames and exists to reproduce that
    command's scores. If N < T, the frames are taken in turn, starting over after the last.

    Reference: PaddleVideo pipelines/sample.py:239-268 (without `select_left`).
    """
    _check(num_frames, num_segments)
    segment = np.arange(num_segments, dtype=np.int64)
    average = num_frames // num_segments
    if average == 0:
        return segment % num_frames
    return (average - 1) // 2 + segment * average


def twice_frames(num_frames: int, num_segments: int) -> np.ndarray:
    """Testing, two clips: the middle frames of the segments, then their first frames `int(N/T*i)`.

    Reference: MIT ops/dataset.py (`--twice_sample`), mmaction2 `SampleFrames(twice_sample=True)`.
    """
    middles = middle_frame_of_each_segment(num_frames, num_segments)
    tick = num_frames / num_segments
    return np.concatenate([middles, (tick * np.arange(num_segments)).astype(np.int64)])


def dense_frames(num_frames: int, num_segments: int) -> np.ndarray:
    """Testing, `DENSE_CLIPS` clips: every `64//T`-th frame of windows of 64 frames.

    The windows are spread over the video. A window longer than the video starts over.

    Reference: MIT ops/dataset.py (`--dense_sample`), mmaction2 `DenseSampleFrames`.
    """
    count, window = _dense_windows(num_frames, num_segments)
    starts = np.linspace(0, count - 1, DENSE_CLIPS).astype(np.int64)
    return ((starts[:, None] + window) % num_frames).reshape(-1)


def _dense_windows(num_frames: int, num_segments: int) -> tuple[int, np.ndarray]:
    """Returns the number of possible starts of a window, and its frames relative to the start."""
    _check(num_frames, num_segments)
    if num_segments > _DENSE_FRAMES:
        raise UserError(
            f"dense sampling takes {_DENSE_FRAMES} frames, so at most {_DENSE_FRAMES} segments, not"
            f" {num_segments}: choose another protocol"
        )
    stride = _DENSE_FRAMES // num_segments
    window = stride * np.arange(num_segments, dtype=np.int64)
    return max(1, 1 + num_frames - _DENSE_FRAMES), window


def spread_frames(num_frames: int, count: int) -> np.ndarray:
    """Returns the middle frames of `count` <= `num_frames` equal parts: int64[count], ascending."""
    return ((2 * np.arange(count, dtype=np.int64) + 1) * num_frames) // (2 * count)


def _check(num_frames: int, num_segments: int) -> None:
    if num_frames < 1 or num_segments < 1:
        raise ValueError(f"nothing to sample: {num_frames} frames, {num_segments} segments")


MULTI_SCALES = (1, 0.875, 0.75, 0.66)

# The 13 positions of a multi-scale crop as (x, y) in quarters of the free space, in the references'
# order: corners, centre, middles of the edges, points halfway between centre and corners.
PLACES = (
    *((0, 0), (4, 0), (0, 4), (4, 4), (2, 2)),
    *((0, 2), (4, 2), (2, 4), (2, 0)),
    *((1, 1), (3, 1), (1, 3), (3, 3)),
)


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle inside an image, in pixels."""

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
    """Draws a crop's shape (sides are `scales` of the short side) and one of 13 positions.

    The two sides are at most one scale apart. A side within 2 px of `crop_size` becomes
    `crop_size`, but never exceeds the short side. Positions are drawn uniformly even where they
    coincide.

    Reference: PaddleVideo pipelines/augmentations.py `MultiScaleCrop(allow_duplication=True)`,
    which steps by a float quarter of the free space; Pillow's `crop` then rounds half to even. (In
    such a tie, its right edge can be one pixel off; here, the sides keep their length. MIT and
    mmaction2 step by an integer.)
    """
    short_side = min(height, width)
    sides = [int(short_side * scale) for scale in scales]
    sides = [crop_size if abs(side - crop_size) < 3 else side for side in sides]
    sides = [max(1, min(side, short_side)) for side in sides]
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
    """Draws the region that PP-TSM's three steps leave of an image, in pixels of the original.

    The image is scaled to 4:3 with a short side of 8/7 of `crop_size` (256 for 224), a multi-scale
    crop is scaled to a square of that side, and a random square of `crop_size` is cut out. The
    result shows up to 7/8 of the short side, narrowed if the image is wider than 4:3. A single
    rectangle, resized once, shows the same; its sides are rounded to pixels.

    Reference: the training transforms of PaddleVideo's pptsm_*.yaml (`Scale`, `MultiScaleCrop`,
    `RandomCrop`), whose `allow_duplication=False` leaves out some positions that coincide.
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


# Values of `config.data.crop`.
TRAINING_CROPS = {"multi_scale": draw_multi_scale_crop, "pptsm": draw_pptsm_crop}


def fixed_ratio(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Returns the height and width that `transforms.resize_fixed_ratio` gives an image."""
    if min(height, width) == short_side:
        return height, width
    long_side = int(short_side * 4 / 3)
    return (long_side, short_side) if width <= height else (short_side, long_side)
