"""Finds the clips a command works on: those of a list, or the video files below a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tsm_jax import files
from tsm_jax.data.lists import (
    VIDEO_SUFFIXES,
    ClipEntry,
    is_remote,
    list_lines,
    read_frame_list,
    read_video_list,
)
from tsm_jax.errors import UserError
from tsm_jax.terminal import printable

_ANY_LABEL = 2**31  # the model's number of classes is unknown during preparation


def read_entries(source: str, list_path: str, *, prefix: str, suffix: str) -> list[ClipEntry]:
    """Reads the entries of a list for `source`, `videos` or `frames`.

    Raises:
        UserError: The list is malformed, or contains addresses of folders of frames.
    """
    read = read_frame_list if source == "frames" else read_video_list
    entries = read(list_path, prefix=prefix, suffix=suffix, num_classes=_ANY_LABEL)
    if source == "frames" and (away := next((e.path for e in entries if is_remote(e.path)), "")):
        raise UserError(
            f"{printable(away)}: folders of frames are read from a disk, not from a bucket; use"
            " videos or a packed folder"
        )
    return entries


def clean_lines(list_path: str, usable: Sequence[bool]) -> list[str]:
    """Returns the list's own lines whose entries are usable."""
    pairs = zip(list_lines(list_path), usable, strict=True)
    return [line for (_, line), keep in pairs if keep]


def list_line(path: str, label: int, num_frames: int | None = None) -> str:
    """Formats a line of a list of videos, or of frames if `num_frames` is given.

    Raises:
        UserError: The line would be read as another path.
    """
    if path != path.strip() or "\n" in path or "\r" in path:
        raise UserError(
            f"{printable(repr(path))}: a list cannot contain a path with line breaks or surrounding"
            " blanks; rename it"
        )
    return f"{path} {label}" if num_frames is None else f"{path} {num_frames} {label}"


@dataclass
class Found:
    """What is below a folder; all paths are relative to it.

    Attributes:
        others: Files that are not videos, hidden files and folders, pipes, and broken or circular
            links.
        folders: The first two levels of folders, with or without videos.
    """

    videos: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def without_videos(self, level: int) -> list[str]:
        """Returns the folders at `level` (1 or 2) that contain no videos."""
        used = {os.sep.join(video.split(os.sep)[:level]) for video in self.videos}
        return [
            name for name in self.folders if name.count(os.sep) == level - 1 and name not in used
        ]


def survey(root: str | Path) -> Found:
    """Lists everything below a folder, sorted. Links are followed, except circular ones.

    Raises:
        UserError: The folder does not exist, a folder in it cannot be read, or there are no videos.
    """
    if not os.path.isdir(root):
        raise UserError(f"the folder {root} does not exist: give the folder of the videos")
    found = Found()
    try:
        _walk(os.fspath(root), "", [], found)
    except OSError as error:
        path = printable(error.filename)
        raise UserError(f"cannot read the folder {path}: {files.reason(error)}") from error
    for names in (found.videos, found.others, found.folders):
        names.sort()
    if not found.videos:
        raise UserError(f"{root} contains no video files ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return found


def find_videos(root: str | Path) -> list[str]:
    """Returns the sorted paths of the video files below `root`, relative to it; see `survey`."""
    return survey(root).videos


def _walk(root: str, inside: str, above: list[os.stat_result], found: Found) -> None:
    here = os.stat(os.path.join(root, inside))
    if any(os.path.samestat(here, folder) for folder in above):
        found.others.append(inside)
        return
    with os.scandir(os.path.join(root, inside)) as entries:
        for entry in entries:
            path = os.path.join(inside, entry.name)
            if entry.name.startswith("."):
                found.others.append(path)
            elif entry.is_dir():
                if len(above) < 2:
                    found.folders.append(path)
                _walk(root, path, [*above, here], found)
            elif entry.is_file() and os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES:
                found.videos.append(path)
            else:
                found.others.append(path)


def short_names(entries: Sequence[ClipEntry], prefix: str) -> list[str]:
    """Returns a name for each entry: its path below `prefix`, or `<class>/<file>` outside of it.

    Raises:
        UserError: Two entries would get the same name.
    """
    path_of: dict[str, str] = {}
    names = []
    for path, _, _ in entries:
        name = os.path.relpath(path, prefix) if prefix else path
        if os.path.isabs(name) or name.startswith(os.pardir):
            name = os.path.join(*Path(path).parts[-2:])
        names.append(os.path.normpath(name))
        if (other := path_of.setdefault(names[-1], path)) != path:
            raise UserError(
                f"{other} and {path} would both be called {names[-1]}: write the list with paths"
                " relative to one folder and pass that folder as --prefix"
            )
    return names
