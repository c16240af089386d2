"""Reads a few frames of clips that were extracted to folders of images."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tsm_jax.data.lists import FRAME_TEMPLATE, ListSource
from tsm_jax.errors import UnreadableClipError

# Like Pillow, and thus the references, ignore the orientation that a camera has stored.
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


@dataclass(frozen=True)
class FrameSource(ListSource):
    """Folders of numbered images."""

    template: str

    def read(self, index: int, choose: Callable[[int], np.ndarray]) -> list[np.ndarray]:
        entry = self.entries[index]
        assert entry.num_frames is not None, "a frame list gives the number of frames"
        return load_frames(entry.path, entry.num_frames, choose, template=self.template)


def load_frames(
    folder: str | Path,
    num_frames: int,
    choose: Callable[[int], np.ndarray],
    template: str = FRAME_TEMPLATE,
) -> list[np.ndarray]:
    """Reads the frames of a folder that `choose` picks, each file once.

    Args:
        num_frames: Number of frames according to the list.
        choose: Maps `num_frames` to zero-based indices [T], which may repeat.
        template: `str.format` template of the file names, filled with numbers from 1.

    Returns:
        T arrays uint8[H, W, 3], RGB, all of the same size; a repeated frame is the same array.

    Raises:
        UnreadableClipError: A file is missing, broken or differs in size from the first.

    Reference: PaddleVideo pipelines/decode.py `FrameDecoder` and sample.py, which read the same
    pixels with Pillow (those of OpenCV are equal for JPEG and PNG, and faster), but replace a clip
    that lacks a file with a random one.
    """
    read = cache(lambda number: _read(folder, number, template, num_frames))
    numbers = [index + 1 for index in choose(num_frames).tolist()]
    frames = [read(number) for number in numbers]
    for number, frame in zip(numbers, frames, strict=True):
        if frame.shape != frames[0].shape:
            (height, width), (h0, w0) = frame.shape[:2], frames[0].shape[:2]
            raise UnreadableClipError(
                f"{os.path.join(folder, template.format(number))} is {width}x{height}, but "
                f"other frames of the clip are {w0}x{h0}; extract the frames again"
            )
    return frames


def decode_picture(data: bytes | memoryview, name: str) -> np.ndarray:
    """Decodes a JPEG (including grey and CMYK), PNG, WebP, ... image to uint8[H, W, 3], RGB.

    Args:
        name: What the data is, for error messages.

    Raises:
        UnreadableClipError: The data is empty, truncated or not an image.
    """
    if not data:
        raise UnreadableClipError(f"{name} is empty (0 bytes); extract the frames again")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
    except cv2.error:
        picture = None
    if picture is not None:
        return np.asarray(picture)
    try:  # Pillow reads what OpenCV cannot, and says what is wrong with the rest.
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's plugins raise all kinds of errors on broken data.
        # The buffer's own description ("<_io.BytesIO object at ...>") means nothing to a user.
        reason = re.sub(r"\s*<.*>", " this data", str(error)) or repr(error)
        raise UnreadableClipError(
            f"cannot decode {name}: {reason}; extract the frames again"
        ) from error


def _read(folder: str | Path, number: int, template: str, num_frames: int) -> np.ndarray:
    name = os.path.join(folder, template.format(number))
    try:
        with open(name, "rb") as file:  # pathlib takes 50 us longer, with Python's lock
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise UnreadableClipError(_explain_missing(folder, name, template, num_frames)) from None
    except OSError as error:
        raise UnreadableClipError(f"cannot read {name}: {error.strerror}") from error
    return decode_picture(data, name)


def _explain_missing(folder: str | Path, name: str, template: str, num_frames: int) -> str:
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            return (
                f"{folder} is a file, not a folder of frames; for video files set"
                " config.data.source=videos"
            )
        return f"the folder of frames {folder} does not exist; check config.data.prefix"
    present = set(os.listdir(folder))
    numbered = sum(template.format(i) in present for i in range(1, num_frames + 1))
    if not numbered:
        return f"{name} is missing, and so is every other frame; check config.data.frame_template"
    if all(template.format(i) in present for i in range(1, numbered + 1)):
        return (
            f"{name} is missing: the list says {num_frames} frames, but the folder has "
            f"{numbered}; correct the list"
        )
    return (
        f"{name} is missing: the folder has {numbered} of {num_frames} frames, with gaps in the "
        f"numbering; extract the frames again"
    )
