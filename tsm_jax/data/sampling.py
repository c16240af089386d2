"""Which frames of a clip the network sees: one from each of T equal segments.

Functions of one clip return int64[T], zero-based and in order of time; indices repeat when the clip
has fewer frames than segments. Those of several clips return them one after the other, [clips * T].
"""

from __future__ import annotations

import numpy as np

from tsm_jax.errors import UserError

DENSE_CLIPS = 10
_DENSE_FRAMES = 64


def random_frame_of_each_segment(
    num_frames: int, num_segments: int, rng: np.random.Generator
) -> np.ndarray:
    """Training: a frame drawn uniformly from each segment of `num_frames // num_segments` frames.

    The last `num_frames % num_segments` frames are never drawn, as in the references. A clip
    shorter than `num_segments` is spread evenly and nothing is drawn.

    Reference: PaddleVideo pipelines/sample.py:270-303 (`select_left`) and MIT ops/dataset.py
    (`_sample_indices`); for short clips these repeat frame 0, and mmaction2 spreads as here (but
    rounds i*N/T where this truncates, so that the last frame is not favoured).
    """
    _check(num_frames, num_segments)
    segment = np.arange(num_segments, dtype=np.int64)
    average = num_frames // num_segments
    if average == 0:
        return segment * num_frames // num_segments
    return segment * average + rng.integers(average, size=num_segments)


def random_dense_frames(num_frames: int, num_segments: int, rng: np.random.Generator) -> np.ndarray:
    """Training: every `64//T`-th frame of one of the windows of `dense_frames`, drawn uniformly.

    Reference: PaddleVideo pipelines/sample.py and MIT ops/dataset.py (`dense_sample`), which never
    draw the last window.
    """
    starts, window = _dense_windows(num_frames, num_segments)
    return (rng.integers(starts) + window) % num_frames


# By `config.data.sampling`.
TRAINING = {"uniform": random_frame_of_each_segment, "dense": random_dense_frames}


def middle_frame_of_each_segment(num_frames: int, num_segments: int) -> np.ndarray:
    """Testing: `int(N/T/2 + N/T*i)`, in float64 and truncated, for every N.

    Reference: MIT ops/dataset.py `_get_test_indices` and mmaction2 `SampleFrames`. PaddleVideo's
    `--test` agrees for N > T; for N <= T it takes frame 0 alone.
    """
    _check(num_frames, num_segments)
    tick = num_frames / num_segments
    return (tick / 2.0 + tick * np.arange(num_segments)).astype(np.int64)


def paddle_predict_frames(num_frames: int, num_segments: int) -> np.ndarray:
    """Testing as PaddleVideo's `tools/predict.py` does: `(N//T - 1)//2 + i*(N//T)`.

    It differs from `middle_frame_of_each_segment` by a few frames; it exists to reproduce that
    command's scores. With N < T the frames are taken in turn, starting over after the last.

    Reference: PaddleVideo pipelines/sample.py:239-268 (without `select_left`).
    """
    _check(num_frames, num_segments)
    segment = np.arange(num_segments, dtype=np.int64)
    average = num_frames // num_segments
    if average == 0:
        return segment % num_frames
    return (average - 1) // 2 + segment * average


def twice_frames(num_frames: int, num_segments: int) -> np.ndarray:
    """Two clips: the middle frames of the segments, then their first frames `int(N/T*i)`.

    Reference: MIT ops/dataset.py (`--twice_sample`), mmaction2 `SampleFrames(twice_sample=True)`.
    """
    middles = middle_frame_of_each_segment(num_frames, num_segments)
    tick = num_frames / num_segments
    return np.concatenate([middles, (tick * np.arange(num_segments)).astype(np.int64)])


def dense_frames(num_frames: int, num_segments: int) -> np.ndarray:
    """`DENSE_CLIPS` clips of every `64//T`-th frame of windows of 64 frames, spread over the video.

    A window that is longer than the video starts over.

    Reference: MIT ops/dataset.py (`--dense_sample`), mmaction2 `DenseSampleFrames`.
    """
    count, window = _dense_windows(num_frames, num_segments)
    starts = np.linspace(0, count - 1, DENSE_CLIPS).astype(np.int64)
    return ((starts[:, None] + window) % num_frames).reshape(-1)


def _dense_windows(num_frames: int, num_segments: int) -> tuple[int, np.ndarray]:
    """How many places a window can start at, and its frames from there."""
    _check(num_frames, num_segments)
    if num_segments > _DENSE_FRAMES:
        raise UserError(
            f"dense sampling takes at most one of {_DENSE_FRAMES} frames per segment, not"
            f" {num_segments}: choose another protocol"
        )
    stride = _DENSE_FRAMES // num_segments
    window = stride * np.arange(num_segments, dtype=np.int64)
    return max(1, 1 + num_frames - _DENSE_FRAMES), window


def spread_frames(num_frames: int, count: int) -> np.ndarray:
    """The middles of `count` equal parts, at most `num_frames`, of a clip: int64[count], rising."""
    return ((2 * np.arange(count, dtype=np.int64) + 1) * num_frames) // (2 * count)


def _check(num_frames: int, num_segments: int) -> None:
    if num_frames < 1 or num_segments < 1:
        raise ValueError(f"nothing to sample: {num_frames} frames, {num_segments} segments")
