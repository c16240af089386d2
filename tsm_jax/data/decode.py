"""Decoding a few frames of a video file: decord first, PyAV where that fails.

Both are built on FFmpeg and return the same pixels; decord jumps to the wanted frames, PyAV walks
there but reads more kinds of files. Any number of threads may decode at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Generator
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import ModuleType

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from tsm_jax.errors import UnreadableClipError

decord: ModuleType | None
_DECORD_ERRORS: tuple[type[Exception], ...]
try:
    import decord

    # What it was seen to raise for broken files, besides the error of its own.
    _DECORD_ERRORS = (decord.DECORDError, RuntimeError, AssertionError, LookupError, ValueError)
except (ImportError, OSError):  # Not every platform has a wheel; PyAV then does it alone.
    decord, _DECORD_ERRORS = None, ()

# FFmpeg would print its complaints on stderr between the lines of whoever called (PyAV's copy of it
# is quiet by itself); the reason for a failure is in the exception.
if decord is not None:
    decord.logging.set_level(decord.logging.QUIET)

# PyAV raises ValueError for pixel formats that it cannot convert.
_PYAV_ERRORS = (FFmpegError, OSError, ValueError)

Choose = Callable[[int], np.ndarray]

# Frames that `every_frame` holds at a time.
_CHUNK = 16


class _Everything:
    """Contains every frame."""

    def __contains__(self, item: object) -> bool:
        return True


def decode_frames(path: str | Path, choose: Choose) -> list[np.ndarray]:
    """Decodes the frames of a video that `choose` picks.

    Frames are upright: a rotation stored in the file is applied.

    Args:
        path: A video file with any codec and container that FFmpeg reads.
        choose: Maps the number of frames to zero-based indices (1-D, at least one, in any order,
            may repeat). It may be called more than once, with another number each time a decoder
            finds that the file holds other than it claims; equal numbers must give equal indices,
            so draw from a generator that is seeded inside it.

    Returns:
        T arrays uint8[H, W, 3], RGB, all of one size, in the order of the indices.

    Raises:
        UnreadableClipError: The file is missing, empty, not a video or broken, in one line.
    """
    path = os.path.abspath(path)  # So that FFmpeg never takes "a:b.mp4" for a protocol.
    check_is_video(path)
    frames = _decode_with_decord(path, choose)
    if frames is None:
        frames = _decode_with_pyav(path, choose)
    return frames


def every_frame(path: str | Path) -> Generator[np.ndarray, None, None]:
    """Decodes a video from the first frame to the last, holding few of them at a time.

    Yields:
        The frames that `decode_frames` would number 0, 1, 2, ...

    Raises:
        UnreadableClipError: As `decode_frames`, at the first frame that cannot be decoded.
    """
    path = os.path.abspath(path)
    check_is_video(path)
    done, is_complete = yield from _every_frame_with_decord(path)
    if is_complete:
        return
    for frame in islice(_walk(path, _Everything()), done, None):  # PyAV goes on from there
        assert frame is not None, "everything is wanted"
        yield frame
        done += 1
    if done == 0:
        raise UnreadableClipError(f"{path} has a video stream without frames; fetch it again")


def _every_frame_with_decord(path: str) -> Generator[np.ndarray, None, tuple[int, bool]]:
    """The frames as far as decord can decode; returns their number and whether it is all."""
    if decord is None:
        return 0, False
    try:
        reader = decord.VideoReader(path, num_threads=1)
        length = len(reader)
    except _DECORD_ERRORS:
        return 0, False
    for start in range(0, length, _CHUNK):
        try:
            chunk = reader.get_batch(np.arange(start, min(start + _CHUNK, length))).asnumpy()
        except _DECORD_ERRORS:
            return start, False
        yield from chunk
    return length, length > 0


def check_is_video(path: str) -> None:
    """Opens the file with PyAV: half a millisecond, against decord's report on stderr."""
    if not os.path.exists(path):
        raise UnreadableClipError(f"the video {path} does not exist")
    if not os.path.isfile(path):
        raise UnreadableClipError(f"the video {path} is not a file")
    if os.path.getsize(path) == 0:
        raise UnreadableClipError(f"the video {path} is empty (0 bytes); fetch it again")
    try:
        with av.open(path) as container:
            format_name = container.format.name
            has_video = container.streams.best("video") is not None
    except _PYAV_ERRORS as error:
        raise _unreadable(path, error) from error
    if format_name == "tty":  # FFmpeg renders any .txt as a film of a terminal.
        raise UnreadableClipError(f"{path} is a text file, not a video")
    if not has_video:
        raise UnreadableClipError(f"{path} has no video stream ({format_name})")


def _decode_with_decord(path: str, choose: Choose) -> list[np.ndarray] | None:
    """The chosen frames, or None where decord cannot."""
    if decord is None:
        return None
    try:
        reader = decord.VideoReader(path, num_threads=1)
        num_frames = len(reader)
    except _DECORD_ERRORS:
        return None
    indices = _indices(choose, num_frames)
    try:
        return list(reader.get_batch(indices).asnumpy())
    except _DECORD_ERRORS:
        return None
    finally:
        del reader  # It holds the file and a decoding thread.


def _decode_with_pyav(path: str, choose: Choose) -> list[np.ndarray]:
    """The chosen frames; decodes from the start, keeps the wanted ones and stops at the last."""
    num_frames = _claimed_length(path) or sum(1 for _ in _walk(path, ()))
    while num_frames > 0:
        indices = _indices(choose, num_frames).tolist()
        kept: dict[int, np.ndarray] = {}
        num_decoded = 0
        with closing(_walk(path, set(indices))) as frames:
            for frame in frames:
                if frame is not None:
                    kept[num_decoded] = frame
                num_decoded += 1
                if num_decoded > max(indices):
                    return [kept[i] for i in indices]
        num_frames = num_decoded  # The container claimed more: choose from what there is.
    raise UnreadableClipError(f"{path} has a video stream without frames; fetch it again")


def _claimed_length(path: str) -> int:
    """The number of frames that the container states, 0 where it states none."""
    try:
        with av.open(path) as container:
            return _video_stream(container).frames
    except _PYAV_ERRORS as error:
        raise _unreadable(path, error) from error


def _walk(path: str, wanted: Container[int]) -> Generator[np.ndarray | None, None, None]:
    """Decodes every frame in order; uint8[H, W, 3] of those in `wanted`, None for the others."""
    width = height = None
    i = 0
    try:
        with av.open(path) as container:
            stream = _video_stream(container)
            stream.codec_context.thread_count = 1
            for i, frame in enumerate(container.decode(stream)):
                if i in wanted:
                    # A stream may change its size midway; the clip keeps the first one.
                    width, height = width or frame.width, height or frame.height
                    image = frame.to_ndarray(format="rgb24", width=width, height=height)
                    yield np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
                else:
                    yield None
    except _PYAV_ERRORS as error:
        raise _unreadable(path, error, after=i) from error


def _video_stream(container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    assert isinstance(stream, VideoStream), "checked before any decoding"
    return stream


def _indices(choose: Choose, num_frames: int) -> np.ndarray:
    """int64[T]; a wrong choice is a defect of the caller and must not look like a broken file."""
    indices = np.asarray(choose(num_frames), np.int64)
    if indices.ndim != 1 or not indices.size:
        raise ValueError(f"choose({num_frames}) must return indices [T], got {indices.shape}")
    if indices.min() < 0 or indices.max() >= num_frames:
        raise ValueError(f"choose({num_frames}) returned {indices.tolist()}, outside the video")
    return indices


def _unreadable(path: str, error: Exception, after: int = 0) -> UnreadableClipError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or repr(error)
    where = f" beyond frame {after}" if after else ""
    return UnreadableClipError(
        f"cannot decode {path}{where}: {reason}; fetch it again or leave it out"
    )
