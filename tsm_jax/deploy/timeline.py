"""A long video or a stream in a sliding window: what happens when.

A window is taken for a video of its own: the protocol chooses among its frames as it would there.
Frames are prepared once and shared by the windows that overlap; memory holds those of a few
windows, however long the video is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tsm_jax.data.decode import frame_rate, open_video, shown_frames
from tsm_jax.data.protocols import EvalProtocol
from tsm_jax.deploy.prediction import Prediction, as_values, softmax
from tsm_jax.deploy.videos import VideoPath, is_path, local_file, read_views
from tsm_jax.errors import UnreadableClipError, UserError

if TYPE_CHECKING:
    from tsm_jax.deploy.predictor import Predictor

_SHORTEST, _LONGEST = 0.001, 1e6  # seconds of a window, or from one to the next


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

    def values(self) -> dict[str, Any]:
        """The answer for JSON."""
        times = {"start": round(self.start, 3), "end": round(self.end, 3)}
        return {**times, "predictions": as_values(self.predictions)}


class Window(NamedTuple):
    """A place of the sliding window: seconds, and its views, uint8 `[V, T, S, S, 3]`."""

    start: float
    end: float
    views: np.ndarray


def timeline(
    predictor: Predictor,
    video: VideoPath,
    *,
    window: float,
    step: float | None = None,
    top_k: int = 5,
) -> Iterator[Moment]:
    """Answers for each place of a sliding window, as soon as its last frame is decoded.

    Args:
        predictor: the network.
        video: a path or an https address.
        window: seconds, rounded to whole frames.
        step: from one window to the next, seconds; None for half a window. It is rounded to whole
            T-ths of a window, at least one, so that windows share their frames.
        top_k: classes in an answer.

    Yields:
        A moment per window. A video that is shorter than the window is one window.

    Raises:
        UnreadableClipError: the video cannot be decoded; what came before is valid.
        UserError: the window or the step is not a sensible number, or the video an array.
    """
    step = check_lengths(window, step)
    if not is_path(video):
        raise UserError("an array says nothing of time: give timeline a video file")
    with local_file(video) as path:
        for start, end, views in windows(
            path, predictor.protocol, predictor.num_segments, window=window, step=step
        ):
            logits = predictor.logits(views)
            yield Moment(start, end, predictor.best(logits, top_k), softmax(logits))


def windows(
    path: str, protocol: EvalProtocol, num_segments: int, *, window: float, step: float
) -> Iterator[Window]:
    """What a network of `num_segments` is shown for a timeline; see `timeline`, which raises as
    this does."""
    count = 0
    held: dict[int, np.ndarray] = {}
    with open_video(path) as stream:
        rate = frame_rate(stream)
        length, stride, offsets = _layout(path, protocol, num_segments, window, step, rate)
        # Of the frames that some windows use, by their remainder, the first one.
        first_use = {offset % stride: offset for offset in sorted(offsets, reverse=True)}

        def wanted(frame: int) -> bool:
            return frame >= first_use.get(frame % stride, math.inf)

        for frame, image in shown_frames(path, stream, float(rate), wanted):
            if image is not None:
                held[frame] = protocol.resized([image], path)[0]
            count = frame + 1
            start = count - length
            if start >= 0 and start % stride == 0:
                views = protocol.views([held[start + offset] for offset in offsets], path)
                yield Window(float(start / rate), float(count / rate), views)
                held = {i: kept for i, kept in held.items() if i >= start + stride}
    if count < length:
        end = float(max(count, 1) / rate)
        yield Window(0.0, end, read_views(path, protocol, num_segments))


def check_lengths(window: float, step: float | None) -> float:
    """The step, half a window for None.

    Raises:
        UserError: the window or the step is not a sensible number of seconds.
    """
    step = max(window / 2, _SHORTEST) if step is None else step
    for name, value in (("window", window), ("step", step)):
        if not _SHORTEST <= value <= _LONGEST:
            raise UserError(
                f"--{name} is {value}: it must be from {_SHORTEST} to {_LONGEST:.0f} seconds"
            )
    return step


def _layout(
    path: str,
    protocol: EvalProtocol,
    segments: int,
    window: float,
    step: float,
    rate: Fraction,
) -> tuple[int, int, list[int]]:
    """Of the windows, in frames: length, distance, and which of its frames each one uses."""
    length = round(window * rate)
    if length < 1:
        raise UnreadableClipError(
            f"a window of {window} s is shorter than a frame of {path} ({float(1 / rate):.3g} s)"
        )
    parts = max(1, round(step / window * segments))
    offsets = protocol.choose_frames(length, segments).tolist()
    return length, max(1, round(parts * length / segments)), offsets
