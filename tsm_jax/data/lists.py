"""Reads PaddleVideo's list files: the clips, their labels, and where their files are."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tsm_jax import files
from tsm_jax.errors import StopJobsError, UnreadableClipError, UserError
from tsm_jax.terminal import printable

# Files with these suffixes count as videos when a folder is searched.
VIDEO_SUFFIXES = (
    *(".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg"),
    *(".wmv", ".flv", ".ts", ".3gp", ".ogv"),
)

FRAME_TEMPLATE = "img_{:05}.jpg"  # `str.format` template of the names of frames
LABELS_FILE = "labels.txt"  # class names, beside a list

_SCHEMES = ("gs://", "s3://", "az://")  # which `epath` passes to fsspec
_ENDS_IN_A_NUMBER = re.compile(r"\s[0-9]+$")
_LONGEST_LINE = 4200  # characters; no system opens paths of more than 4096 bytes


class _WrongLine(Exception):
    """What is wrong with a line of a list."""


class ClipEntry(NamedTuple):
    """One line of a list: a video file (or its address), or a folder of frames."""

    path: str
    label: int
    num_frames: int | None


@dataclass(frozen=True)
class ListSource:
    """Base class of the sources whose clips are the entries of a list."""

    entries: Sequence[ClipEntry]

    def __len__(self) -> int:
        return len(self.entries)

    def label(self, index: int) -> int:
        return self.entries[index].label

    def name(self, index: int) -> str:
        return self.entries[index].path


def read_video_list(
    list_path: str | Path, *, prefix: str = "", suffix: str = "", num_classes: int
) -> list[ClipEntry]:
    """Reads lines `path label`; `num_frames` of the entries is None.

    Args:
        list_path: Blank lines are ignored.
        prefix: Folder that relative paths are relative to.
        suffix: Appended to every path, for lists that omit ".avi" (UCF-101).
        num_classes: Labels must be in 0..num_classes-1.

    Raises:
        UserError: The list is missing or empty, a line is malformed, or a clip appears twice with
            different labels.

    Reference: PaddleVideo loader/dataset/video.py:49-61. Unlike there, a path may contain spaces.
    """

    def parse(line: str) -> ClipEntry:
        columns = line.rsplit(None, 1)
        if len(columns) < 2:
            raise _WrongLine(f"expected 'path label', found '{line}'")
        path = os.path.join(prefix, columns[0] + suffix)
        # "clip 7" may be a file name; if there is no such file, it is a line of a frame list.
        if _ENDS_IN_A_NUMBER.search(columns[0]) and not os.path.exists(path):
            raise _WrongLine(
                f"expected 'path label', found '{line}'; if this is a list of frame folders"
                " ('folder num_frames label'), set config.data.source=frames"
            )
        return ClipEntry(path, _label(columns[1], num_classes), None)

    return _read(list_path, parse)


def read_frame_list(
    list_path: str | Path, *, prefix: str = "", suffix: str = "", num_classes: int
) -> list[ClipEntry]:
    """Reads lines `folder num_frames label`; `path` of the entries is the folder.

    Arguments and errors are as for `read_video_list`; `num_frames` must be at least 1.

    Reference: PaddleVideo loader/dataset/frame.py:60-74.
    """

    def parse(line: str) -> ClipEntry:
        columns = line.rsplit(None, 2)
        if len(columns) < 3 or not _is_number(columns[1]):
            raise _WrongLine(
                f"expected 'folder num_frames label', found '{line}'; if this is a list of video"
                " files ('path label'), set config.data.source=videos"
            )
        num_frames = int(columns[1])
        if num_frames < 1:
            raise _WrongLine(
                "num_frames is 0; extract the frames of this clip again or remove the line"
            )
        label = _label(columns[2], num_classes)
        return ClipEntry(os.path.join(prefix, columns[0] + suffix), label, num_frames)

    return _read(list_path, parse)


def list_lines(list_path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, stripped line) of a list's non-blank lines.

    Raises:
        UserError: The list is not a readable text file.
    """
    # On Linux, file names need not be UTF-8.
    text = files.read_text(list_path, "the list", errors="surrogateescape")
    if "\0" in text:
        line_number = text[: text.index("\0")].count("\n") + 1
        raise UserError(
            f"{list_path}, line {line_number}: contains a NUL byte; save the list as UTF-8"
        )
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for line_number, line in enumerate(text.split("\n"), start=1):
        if line := line.strip():
            yield line_number, line


def _read(list_path: str | Path, parse: Callable[[str], ClipEntry]) -> list[ClipEntry]:
    entries = []
    first: dict[str, tuple[int, int]] = {}  # label and line number of each path
    for line_number, line in list_lines(list_path):
        try:
            if len(line) > _LONGEST_LINE:
                raise _WrongLine(f"has {len(line)} characters, more than any path can have")
            entry = parse(line)
            label, earlier = first.setdefault(entry.path, (entry.label, line_number))
            if label != entry.label:
                raise _WrongLine(
                    f"{entry.path} has label {entry.label} here and {label} on line {earlier};"
                    " remove one of the lines"
                )
        except _WrongLine as error:
            raise UserError(f"{list_path}, line {line_number}: {printable(error)}") from None
        entries.append(entry)
    if not entries:
        raise UserError(f"the list {list_path} is empty; write one clip per line")
    return entries


def _is_number(text: str) -> bool:
    """Whether the text is ASCII digits only; `int` also accepts `1_0`, `+1` and other digits."""
    return text.isascii() and text.isdigit() and len(text) < 19


def _label(text: str, num_classes: int) -> int:
    if not _is_number(text.removeprefix("-")):
        raise _WrongLine(f"the label '{text[:40]}' is not an integer; correct the last column")
    label = int(text)
    if not 0 <= label < num_classes:
        raise _WrongLine(
            f"the label {label} is outside 0..{num_classes - 1}; correct it or set"
            " config.model.num_classes"
        )
    return label


def is_remote(path: str | Path) -> bool:
    """Whether the path is the address of an object in a bucket."""
    return str(path).startswith(_SCHEMES)


def exists(path: str | Path) -> bool:
    """Whether the file, folder or object exists; False if its bucket cannot be reached."""
    if not is_remote(path):
        return os.path.exists(path)
    from etils import epath

    try:
        return epath.Path(path).exists()
    except Exception:  # each store raises its own
        return False


@contextmanager
def local_copy(path: str | Path) -> Iterator[str]:
    """Yields the path of a video on this machine: itself, or a copy that is deleted afterwards.

    Raises:
        UnreadableClipError: There is no such object, or the body of the `with` statement raised
            one, in which the copy's path is replaced by `path`.
        StopJobsError: The bucket cannot be reached, so the other videos cannot be either.
    """
    path = os.fspath(path)
    if not is_remote(path):
        yield path
        return
    from etils import epath

    with tempfile.TemporaryDirectory(prefix="tsm_jax-") as folder:
        # FFmpeg recognises some formats by their file names.
        copy = os.path.join(folder, os.path.basename(path))
        try:
            with epath.Path(path).open("rb") as source, open(copy, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
        except FileNotFoundError as error:
            raise UnreadableClipError(
                f"cannot read the video {path}: there is no such object"
            ) from error
        except ImportError as error:
            raise StopJobsError(
                f"{path} cannot be reached: {files.reason(error)} (for gs://, pip install gcsfs;"
                " for s3://, pip install s3fs)"
            ) from error
        except Exception as error:  # each store raises its own
            raise StopJobsError(f"cannot read {path}: {files.reason(error)}") from error
        try:
            yield copy
        except UnreadableClipError as error:
            raise UnreadableClipError(str(error).replace(copy, path)) from error
