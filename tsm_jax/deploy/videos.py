"""Turns a video (a file, an address, an array, or frames) into views, whole or in a sliding window.

A window is treated like a video of its own: the protocol chooses among its frames as it would
there. Frames are prepared once and shared by overlapping windows; memory holds those of a few
windows, however long the video is.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeAlias, TypeGuard
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from tsm_jax.data.decode import decode_frames, frame_rate, open_video, shown_frames
from tsm_jax.data.lists import VIDEO_SUFFIXES, is_remote, local_copy
from tsm_jax.data.protocols import EvalProtocol
from tsm_jax.download import download
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.files import read_text, reason
from tsm_jax.terminal import printable

VideoPath: TypeAlias = str | os.PathLike[str]
Frame: TypeAlias = NDArray[np.uint8]  # [H, W, 3], RGB
Video: TypeAlias = VideoPath | NDArray[np.uint8] | Sequence[Frame]

LIST_SUFFIXES = (".txt", ".list")
_MAX_BYTES = 16 << 30  # of a downloaded video
_SHORTEST, _LONGEST = 0.001, 1e6  # seconds of a window or a step


def find_videos(inputs: Iterable[str]) -> list[str]:
    """Returns the videos of `--input`, in order; folders are searched recursively and sorted.

    Args:
        inputs: video files, folders, and lists (.txt or .list) with one path per line, relative to
            the current folder or else to the list's folder. A label after the path, as in training
            lists, is ignored. Files that do not exist are kept, so that the error is reported in
            place of the answer.

    Raises:
        UserError: a list or a folder cannot be read, or there are no videos.
    """
    videos = [video for path in inputs for video in _expand(path)]
    if not videos:
        raise UserError(
            f"there are no videos in {', '.join(inputs)}: pass files, folders of"
            f" {', '.join(VIDEO_SUFFIXES[:4])} and similar files, or a .txt with one path per line"
        )
    return videos


def _expand(path: str) -> Iterator[str]:
    if os.path.isdir(path):
        for root, folders, names in os.walk(path, onerror=_refuse):
            folders.sort()
            for name in sorted(names):
                if name.lower().endswith(VIDEO_SUFFIXES):
                    yield os.path.join(root, name)
    elif path.lower().endswith(LIST_SUFFIXES):
        yield from _in_list(path)
    else:
        yield path


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f"cannot search the folder {error.filename}: {reason(error)}") from error


def _in_list(path: str) -> Iterator[str]:
    text = read_text(path, "the list", errors="surrogateescape")
    if "\0" in text:
        raise UserError(f"cannot read the list {path}: it is not a text file")
    beside = os.path.dirname(path)
    for line in filter(None, map(str.strip, text.split("\n"))):
        words = line.rsplit(maxsplit=1)
        if is_remote(line):
            yield words[0] if words[-1].isdecimal() else line
            continue
        candidates = [line, words[0]] if words[-1].isdecimal() else [line]
        candidates += [os.path.join(beside, candidate) for candidate in candidates]
        yield next(filter(os.path.exists, candidates), line)


def read_views(
    video: Video, protocol: EvalProtocol, num_segments: int, name: str = "the video"
) -> np.ndarray:
    """Returns the views of a video under a protocol, uint8 `[V, T, S, S, 3]`.

    Args:
        video: see `Predictor.predict`.
        num_segments: T.
        name: of an array, for messages.

    Raises:
        UnreadableClipError: the video cannot be decoded.
        UserError: an array does not consist of frames.
    """
    if not is_path(video):
        return protocol.views(take_frames(video, protocol, num_segments, name), name)

    def choose(num_frames: int) -> np.ndarray:
        return protocol.choose_frames(num_frames, num_segments)

    with local_file(video) as path:
        return protocol.views(decode_frames(path, choose), path)


def is_path(video: object) -> TypeGuard[VideoPath]:
    """Returns whether a video is a path or an address, rather than pixels."""
    return isinstance(video, str | os.PathLike)


def are_paths(video: object) -> TypeGuard[Sequence[VideoPath]]:
    """Returns whether these are the paths of several videos, rather than one video."""
    return isinstance(video, list | tuple) and len(video) > 0 and all(map(is_path, video))


def take_frames(
    video: Any, protocol: EvalProtocol, num_segments: int, name: str
) -> list[np.ndarray]:
    """Returns copies of the frames that a protocol chooses; the caller may reuse their memory.

    Raises:
        UserError: the video does not consist of frames.
    """
    frames = np.asarray(video) if hasattr(video, "__array__") else video
    if not isinstance(frames, np.ndarray | Sequence):
        raise UserError(
            f"{name} is of type {type(video).__name__}: pass a path, an array or frames"
        )
    if isinstance(frames, np.ndarray):
        _check(frames, 4, "[T, H, W, 3]", name)
    if not len(frames):
        raise UserError(f"{name} has no frames")
    images: dict[int, np.ndarray] = {}
    indices = protocol.choose_frames(len(frames), num_segments).tolist()
    for i in dict.fromkeys(indices):
        image = np.asarray(frames[i])
        _check(image, 3, "[H, W, 3]", f"frame {i} of {name}")
        images[i] = np.array(image, order="C")
    sizes = {image.shape for image in images.values()}
    if len(sizes) > 1:
        raise UserError(f"{name} has frames of several sizes, {' and '.join(map(str, sizes))}")
    return [images[i] for i in indices]


def _check(pixels: np.ndarray, ndim: int, wanted: str, name: str) -> None:
    fits = pixels.ndim == ndim and pixels.shape[-1] == 3 and all(pixels.shape[1:])
    if not fits or pixels.dtype != np.uint8:
        raise UserError(
            f"{name} is {pixels.dtype} {list(pixels.shape)}: it must be uint8 {wanted}, RGB;"
            " predict_many takes several videos"
        )


@contextmanager
def local_file(video: VideoPath) -> Iterator[str]:
    """Yields the path of a video; one from an address is downloaded, and deleted afterwards.

    Raises:
        UnreadableClipError: the video cannot be downloaded, or the context's body raises one.
        UserError: a bucket cannot be reached.
    """
    video = os.fspath(video)
    if "://" not in video or is_remote(video):
        with local_copy(video) as copy:
            yield copy
        return
    with tempfile.TemporaryDirectory(prefix="tsm_jax-") as folder:
        # FFmpeg recognizes some formats only by their file names.
        suffix = re.search(r"\.\w{1,10}$", urlsplit(video).path)
        path = Path(folder, f"video{suffix[0] if suffix else ''}")
        try:
            download(video, path, what="the video", setting="TMPDIR", max_bytes=_MAX_BYTES)
        except UserError as error:
            raise UnreadableClipError(str(error)) from error
        try:
            yield str(path)
        except UnreadableClipError as error:
            message = str(error).replace(str(path), printable(video))
            raise UnreadableClipError(message) from error


class Window(NamedTuple):
    """A position of the sliding window, in seconds, and its views, uint8 `[V, T, S, S, 3]`."""

    start: float
    end: float
    views: np.ndarray


def windows(
    path: str, protocol: EvalProtocol, num_segments: int, *, window: float, step: float
) -> Iterator[Window]:
    """Yields the windows of `Predictor.timeline`, each as soon as its last frame is decoded; raises
    as it does."""
    count = 0
    held: dict[int, np.ndarray] = {}
    with open_video(path) as stream:
        rate = frame_rate(stream)
        length = round(window * rate)  # in frames, like the stride
        if length < 1:
            frame = f"{float(1 / rate):.3g} s"
            raise UnreadableClipError(
                f"a window of {window} s is shorter than a frame of {path} ({frame})"
            )
        parts = max(1, round(step / window * num_segments))
        stride = max(1, round(parts * length / num_segments))
        offsets = protocol.choose_frames(length, num_segments).tolist()
        # The first frame that a window uses, by its remainder modulo the stride.
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
    """Returns the step, or half a window for None.

    Raises:
        UserError: the window or the step is out of range.
    """
    step = max(window / 2, _SHORTEST) if step is None else step
    for name, value in (("window", window), ("step", step)):
        if not _SHORTEST <= value <= _LONGEST:
            raise UserError(
                f"--{name} is {value}: it must be from {_SHORTEST} to {_LONGEST:.0f} seconds"
            )
    return step
