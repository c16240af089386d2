"""A long video or a stream in a sliding window: what happens when.

Frames are taken at equal distances in time, `window / T`, prepared once and shared by the windows
that overlap. Memory holds T prepared frames, however long the video is.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from tsm_jax.data.decode import check_is_video
from tsm_jax.deploy.predictor import Predictor
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.prediction import Prediction, best_classes, softmax


class Moment(NamedTuple):
    """A window and its answer.

    Attributes:
        start, end: seconds from the first frame of the video.
        predictions: best first.
        scores: softmax of all classes, float32 `[K]`.
    """

    start: float
    end: float
    predictions: list[Prediction]
    scores: np.ndarray


def timeline(
    predictor: Predictor,
    path: str,
    *,
    window: float,
    step: float | None = None,
    top_k: int = 5,
) -> Iterator[Moment]:
    """Answers for each place of a sliding window, as soon as its last frame is decoded.

    Args:
        predictor: the network.
        path: of the video.
        window: its length, seconds; T frames are taken from it, each from the middle of a T-th.
        step: from one window to the next, seconds; None for half a window. It is rounded to whole
            T-ths of a window, at least one, so that windows share their frames.
        top_k: classes in an answer.

    Yields:
        A moment per window. A video that is shorter than the window has one, its last frame
        repeated.

    Raises:
        UnreadableClipError: the video cannot be decoded; what came before is valid.
        UserError: the window or the step is not a positive number.
    """
    frames, spacing = predictor.num_segments, window / predictor.num_segments
    stride = step_in_frames(window, step, frames)
    recent: deque[np.ndarray] = deque(maxlen=frames)
    count = 0
    for image in _frames_every(path, spacing):
        recent.append(predictor.protocol.transform([image])[0])
        count += 1
        if count >= frames and (count - frames) % stride == 0:
            yield _moment(predictor, recent, (count - frames) * spacing, window, top_k)
    if 0 < count < frames:
        recent.extend([recent[-1]] * (frames - count))
        yield _moment(predictor, recent, 0.0, window, top_k)


def step_in_frames(window: float, step: float | None, num_segments: int) -> int:
    """The distance of windows in sampled frames, at least 1.

    Raises:
        UserError: the window or the step is not a positive number.
    """
    step = window / 2 if step is None else step
    for name, value in (("window", window), ("step", step)):
        if not (value > 0 and math.isfinite(value)):
            raise UserError(f"--{name} is {value}: it must be a number of seconds above 0")
    return max(1, round(step / window * num_segments))


def _moment(
    predictor: Predictor, recent: deque[np.ndarray], start: float, window: float, top_k: int
) -> Moment:
    logits = predictor.engine.logits(np.stack(recent)[None])[0]
    predictions = best_classes(logits, predictor.labels, top_k)
    return Moment(start, start + window, predictions, softmax(logits))


def _frames_every(path: str, spacing: float) -> Iterator[np.ndarray]:
    """uint8 `[H, W, 3]`: what is on screen at `(i + 0.5) * spacing` seconds, i = 0, 1, ..."""
    path = os.path.abspath(path)
    check_is_video(path)
    try:
        with av.open(path) as container:
            yield from _sample(container, spacing)
    except (FFmpegError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UnreadableClipError(f"cannot decode {path}: {reason}; fetch it again") from error


def _sample(container: InputContainer, spacing: float) -> Iterator[np.ndarray]:
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    rate = float(stream.average_rate or 25)
    shown, first, wanted, size = None, None, 0, None
    time = 0.0
    for number, frame in enumerate(container.decode(stream)):
        time = frame.time if frame.time is not None else number / rate
        first = time if first is None else first
        while shown is not None and first + (wanted + 0.5) * spacing < time:
            yield _upright(shown, size := size or (shown.width, shown.height))
            wanted += 1
        shown = frame
    while shown is not None and first is not None:  # until the last frame has been shown, too
        if first + (wanted + 0.5) * spacing >= time + 1 / rate and wanted:
            break
        yield _upright(shown, size or (shown.width, shown.height))
        wanted += 1


def _upright(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
