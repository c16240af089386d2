"""A video, however it is given: a file, an address, an array, or its frames one by one."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from tsm_jax.data.decode import decode_frames
from tsm_jax.data.lists import is_remote, local_copy
from tsm_jax.data.protocols import EvalProtocol
from tsm_jax.download import download
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.terminal import printable

VideoPath: TypeAlias = str | os.PathLike[str]
Frame: TypeAlias = NDArray[np.uint8]  # [H, W, 3], RGB
Video: TypeAlias = VideoPath | NDArray[np.uint8] | Sequence[Frame]

_MAX_BYTES = 16 << 30  # of a video behind an address


def read_views(
    video: Video, protocol: EvalProtocol, num_segments: int, name: str = "the video"
) -> np.ndarray:
    """What a protocol shows of a video, uint8 `[V, T, S, S, 3]`.

    Args:
        video: see `Predictor.predict`.
        protocol: chooses among the frames of the video and crops them.
        num_segments: T.
        name: of an array, for messages.

    Raises:
        UnreadableClipError: it cannot be decoded.
        UserError: an array is not one of frames.
    """
    if not is_path(video):
        return protocol.views(take_frames(video, protocol, num_segments, name), name)

    def choose(num_frames: int) -> np.ndarray:
        return protocol.choose_frames(num_frames, num_segments)

    with local_file(video) as path:
        return protocol.views(decode_frames(path, choose), path)


def is_path(video: object) -> TypeGuard[VideoPath]:
    """Whether it is a path or an address, rather than pixels."""
    return isinstance(video, str | os.PathLike)


def are_paths(video: object) -> TypeGuard[Sequence[VideoPath]]:
    """Whether these are several videos, rather than one."""
    return isinstance(video, list | tuple) and len(video) > 0 and all(map(is_path, video))


def take_frames(
    video: Any, protocol: EvalProtocol, num_segments: int, name: str
) -> list[np.ndarray]:
    """Copies of the frames that a protocol chooses; whoever gave them may use their memory again.

    Raises:
        UserError: they are not frames.
    """
    frames = np.asarray(video) if hasattr(video, "__array__") else video
    if not isinstance(frames, np.ndarray | Sequence):
        raise UserError(
            f"{name} is of type {type(video).__name__}: give a path, an array or frames"
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
    """The path of a video; one behind an address is downloaded and deleted afterwards.

    Raises:
        UnreadableClipError: it cannot be downloaded, or what is done with the file raises one.
        UserError: a bucket cannot be reached.
    """
    video = os.fspath(video)
    if "://" not in video or is_remote(video):
        with local_copy(video) as copy:
            yield copy
        return
    with tempfile.TemporaryDirectory(prefix="tsm_jax-") as folder:
        # FFmpeg knows some formats by their names alone.
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
