"""PaddleVideo's list files: which clips there are, their labels, and where their files are."""

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

# What is taken for a video where folders are searched.
VIDEO_SUFFIXES = (
    *(".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg"),
    *(".wmv", ".flv", ".ts", ".3gp", ".ogv"),
)

FRAME_TEMPLATE = "img_{:05}.jpg"  # of frames in a folder, as `str.format` fills it
LABELS_FILE = "labels.txt"  # class names, beside a list

_SCHEMES = ("gs://", "s3://", "az://")  # that `epath` hands to fsspec
_ENDS_IN_A_NUMBER = re.compile(r"\s[0-9]+$")
_LONGEST_LINE = 4200  # characters: no system opens a path of more than 4096 bytes


class _WrongLine(Exception):
    """What is wrong with a line of a list."""


class ClipEntry(NamedTuple):
    """One line of a list: a video file (or its address), or a folder of frames."""

    path: str
    label: int
    num_frames: int | None


@dataclass(frozen=True)
class ListSource:
    """What sources whose clips are the entries of a list have in common."""

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
        prefix: Folder that relative paths start from.
        suffix: Appended to every path as it is, for lists that leave out ".avi" (UCF-101).
        num_classes: Labels must be in 0..num_classes-1.

    Raises:
        UserError: The list is missing or empty, a line of it is wrong, or a clip is there twice
            with different labels.

    Reference: PaddleVideo loader/dataset/video.py:49-61. Unlike there a path may contain spaces.
    """

    def parse(line: str) -> ClipEntry:
        columns = line.rsplit(None, 1)
        if len(columns) < 2:
            raise _WrongLine(f"expected 'path label', found '{line}'")
        path = os.path.join(prefix, columns[0] + suffix)
        # "clip 7" may be the name of a file, but with no such file it is a frame list's line.
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

    Arguments and errors as for `read_video_list`; `num_frames` must be at least 1.

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
    """The lines of a list that are not blank, stripped, with their numbers, which start at 1.

    Raises:
        UserError: The list is not a readable text file.
    """
    # Names of files need not be UTF-8 on Linux.
    text = files.read_text(list_path, "the list", errors="surrogateescape")
    if "\0" in text:
        line_number = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{list_path}, line {line_number}: has a NUL byte; save the list as UTF-8")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for line_number, line in enumerate(text.split("\n"), start=1):
        if line := line.strip():
            yield line_number, line


def _read(list_path: str | Path, parse: Callable[[str], ClipEntry]) -> list[ClipEntry]:
    entries = []
    first: dict[str, tuple[int, int]] = {}  # of each path, the label and the line
    for line_number, line in list_lines(list_path):
        try:
            if len(line) > _LONGEST_LINE:
                raise _WrongLine(f"has {len(line)} characters, more than any path")
            entry = parse(line)
            label, earlier = first.setdefault(entry.path, (entry.label, line_number))
            if label != entry.label:
                raise _WrongLine(
                    f"{entry.path} has label {entry.label} here and {label} in line {earlier};"
                    " remove one of the lines"
                )
        except _WrongLine as error:
            raise UserError(f"{list_path}, line {line_number}: {printable(error)}") from None
        entries.append(entry)
    if not entries:
        raise UserError(f"the list {list_path} has no lines; write one clip per line")
    return entries


def _is_number(text: str) -> bool:
    """Whether these are ASCII digits; `int` takes `1_0`, `+1` and other digits as well."""
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
    """Whether it is the address of an object in a bucket."""
    return str(path).startswith(_SCHEMES)


def exists(path: str | Path) -> bool:
    """Whether there is such a file, folder or object; where it cannot be reached, there is none."""
    if not is_remote(path):
        return os.path.exists(path)
    from etils import epath

    try:
        return epath.Path(path).exists()
    except Exception:  # each store has its own
        return False


@contextmanager
def local_copy(path: str | Path) -> Iterator[str]:
    """The path of a video on this machine: itself, or a copy that is deleted afterwards.

    Raises:
        UnreadableClipError: there is no such object, or what is done with the file raises one.
        StopJobsError: the bucket cannot be reached; then nor can the others be.
    """
    path = os.fspath(path)
    if not is_remote(path):
        yield path
        return
    from etils import epath

    with tempfile.TemporaryDirectory(prefix="tsm_jax-") as folder:
        copy = os.path.join(folder, os.path.basename(path))  # FFmpeg knows some formats by name
        try:
            with epath.Path(path).open("rb") as source, open(copy, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
        except FileNotFoundError as error:
            raise UnreadableClipError(f"cannot read the video {path}: there is none") from error
        except ImportError as error:
            raise StopJobsError(
                f"{path} cannot be reached: {files.reason(error)} (for gs://, pip install gcsfs;"
                " for s3://, pip install s3fs)"
            ) from error
        except Exception as error:  # each store has its own
            raise StopJobsError(f"cannot read {path}: {files.reason(error)}") from error
        try:
            yield copy
        except UnreadableClipError as error:
            raise UnreadableClipError(str(error).replace(copy, path)) from error
