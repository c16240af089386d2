"""The frames of a video as they are shown: by time, not by number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from tsm_jax.errors import UnreadableClipError
from tsm_jax.files import reason

_FASTEST = 1000  # frames a second; more are a broken header
_LONGEST_FRAME = 3600  # seconds; a longer one is a broken time stamp


def frame_rate(stream: VideoStream) -> Fraction:
    """Frames per second, as the container says; 25 if it does not."""
    return min(stream.average_rate or Fraction(25), Fraction(_FASTEST))


def shown_frames(
    path: str, stream: VideoStream, rate: float, wanted: Callable[[int], bool]
) -> Iterator[tuple[int, np.ndarray | None]]:
    """What is on screen at `(i + 0.5) / rate` seconds, i = 0, 1, ...: the i-th frame where the rate
    is constant. uint8 `[H, W, 3]`, or None where it is not wanted."""
    container, size, i = stream.container, None, 0
    assert isinstance(container, InputContainer)
    try:
        for frame, end in _with_ends(container.decode(stream), path, rate):
            size = size or (frame.width, frame.height)
            while (i + 0.5) / rate < end:
                yield i, upright(frame, size) if wanted(i) else None
                i += 1
    except (FFmpegError, OSError, ValueError) as error:
        raise UnreadableClipError(
            f"cannot decode {path}: {reason(error)}; fetch it again"
        ) from error


def _with_ends(
    frames: Iterator[av.VideoFrame], path: str, rate: float
) -> Iterator[tuple[av.VideoFrame, float]]:
    """Frames, and when the next one is shown, seconds from the first one."""
    previous, first, time = None, 0.0, 0.0
    for number, frame in enumerate(frames):
        before, time = time, number / rate if frame.time is None else frame.time
        if previous is None:
            first = time
        elif time - before > _LONGEST_FRAME:
            raise UnreadableClipError(
                f"{path} has a gap of {time - before:.0f} s after frame {number - 1}: repair it"
            )
        else:
            yield previous, time - first
        previous = frame
    if previous is not None:
        yield previous, time - first + 1 / rate


def upright(frame: av.VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """uint8 `[H, W, 3]`, RGB, scaled to (width, height) before it is rotated as the file says."""
    image = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
