"""PaddleVideo's list files: which clips there are, and their labels."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tsm_jax.errors import UserError

# What is taken for a video where folders are searched.
VIDEO_SUFFIXES = (
    *(".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg"),
    *(".wmv", ".flv", ".ts", ".3gp", ".ogv"),
)

_ENDS_IN_A_NUMBER = re.compile(r"\s[+-]?\d+$")


class ClipEntry(NamedTuple):
    """One line of a list: a video file, or a folder of frames."""

    path: str
    label: int
    num_frames: int | None


def read_video_list(
    list_path: str | Path, *, prefix: str = "", suffix: str = "", num_classes: int
) -> list[ClipEntry]:
    """Reads lines `path label`; `num_frames` of the entries is None.

    Args:
        list_path: The list file, UTF-8. Blank lines are ignored.
        prefix: Folder that relative paths start from.
        suffix: Appended to every path as it is, for lists that leave out ".avi" (UCF-101).
        num_classes: Labels must be in 0..num_classes-1.

    Raises:
        UserError: The list is missing or empty, or a line of it is wrong.

    Reference: PaddleVideo loader/dataset/video.py:49-61. Unlike there a path may contain spaces.
    """
    entries = []
    for where, line in _lines(list_path):
        columns = line.rsplit(None, 1)
        if len(columns) < 2:
            raise UserError(f"{where}: expected 'path label', found '{line}'")
        path = _join(prefix, columns[0] + suffix)
        # "clip 7" may be the name of a file, but with no such file it is a frame list's line.
        if _ENDS_IN_A_NUMBER.search(columns[0]) and not os.path.exists(path):
            raise UserError(
                f"{where}: expected 'path label', found '{line}'; if this is a list of frame "
                f"folders ('folder num_frames label'), set config.data.source=frames"
            )
        label = _label(columns[1], num_classes, where)
        entries.append(ClipEntry(path, label, None))
    return _not_empty(entries, list_path)


def read_frame_list(
    list_path: str | Path, *, prefix: str = "", suffix: str = "", num_classes: int
) -> list[ClipEntry]:
    """Reads lines `folder num_frames label`; `path` of the entries is the folder.

    Arguments and errors as for `read_video_list`; `num_frames` must be at least 1.

    Reference: PaddleVideo loader/dataset/frame.py:60-74.
    """
    entries = []
    for where, line in _lines(list_path):
        columns = line.rsplit(None, 2)
        if len(columns) < 3 or not _is_integer(columns[1]):
            raise UserError(
                f"{where}: expected 'folder num_frames label', found '{line}'; if this is a list "
                f"of video files ('path label'), set config.data.source=videos"
            )
        num_frames = int(columns[1])
        if num_frames < 1:
            raise UserError(
                f"{where}: num_frames is {num_frames}; extract the frames of this clip again or "
                f"remove the line"
            )
        label = _label(columns[2], num_classes, where)
        entries.append(ClipEntry(_join(prefix, columns[0] + suffix), label, num_frames))
    return _not_empty(entries, list_path)


class _Where:
    """`list file:line`, put into words only when an error needs it (lists are long)."""

    __slots__ = ("line_number", "list_path")

    def __init__(self, list_path: str | Path, line_number: int):
        self.list_path = list_path
        self.line_number = line_number

    def __str__(self) -> str:
        return f"{self.list_path}, line {self.line_number}"


def _lines(list_path: str | Path) -> Iterator[tuple[_Where, str]]:
    try:
        # Names of files need not be UTF-8 on Linux, and Windows editors write a mark in front.
        text = Path(list_path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(
            f"cannot read the list {list_path} ({error.strerror}); check config.data.train_list "
            f"and config.data.val_list"
        ) from error
    for line_number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if line:
            yield _Where(list_path, line_number), line


def _not_empty(entries: list[ClipEntry], list_path: str | Path) -> list[ClipEntry]:
    if not entries:
        raise UserError(f"the list {list_path} has no lines; write one clip per line")
    return entries


def _join(prefix: str, path: str) -> str:
    return os.path.join(prefix, path) if prefix else path


def _is_integer(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def _label(text: str, num_classes: int, where: _Where) -> int:
    if not _is_integer(text):
        raise UserError(f"{where}: the label '{text}' is not an integer; correct the last column")
    label = int(text)
    if not 0 <= label < num_classes:
        raise UserError(
            f"{where}: the label {label} is outside 0..{num_classes - 1}; correct it or set "
            f"config.model.num_classes"
        )
    return label
