"""Which clips a command works on: those of a list, or the video files under a folder."""

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

_ANY_LABEL = 2**31  # preparation does not know how many classes the model will have


def read_entries(source: str, list_path: str, *, prefix: str, suffix: str) -> list[ClipEntry]:
    """The entries of a list for `source`, `videos` or `frames`.

    Raises:
        UserError: the list is wrong, or its frames are behind addresses.
    """
    read = read_frame_list if source == "frames" else read_video_list
    entries = read(list_path, prefix=prefix, suffix=suffix, num_classes=_ANY_LABEL)
    if source == "frames" and (away := next((e.path for e in entries if is_remote(e.path)), "")):
        raise UserError(
            f"{printable(away)}: folders of frames are read from a disk, not from a bucket; videos"
            " and packed folders may be there"
        )
    return entries


def clean_lines(list_path: str, usable: Sequence[bool]) -> list[str]:
    """The list's own lines whose entries are usable, as they stand there."""
    pairs = zip(list_lines(list_path), usable, strict=True)
    return [line for (_, line), keep in pairs if keep]


def list_line(path: str, label: int, num_frames: int | None = None) -> str:
    """A line of a list of videos, or of frames; a UserError if it would be read as another path."""
    if path != path.strip() or "\n" in path or "\r" in path:
        raise UserError(
            f"{printable(repr(path))}: a list cannot name a path with a line break in it or blanks"
            " around it; rename it"
        )
    return f"{path} {label}" if num_frames is None else f"{path} {num_frames} {label}"


@dataclass
class Found:
    """What is below a folder; all paths relative to it.

    Attributes:
        others: files that are not videos, hidden ones, pipes, and links that lead nowhere or in a
            circle.
        folders: the first two levels of folders, with or without videos.
    """

    videos: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def without_videos(self, level: int) -> list[str]:
        """Folders `level` (1 or 2) below that have no videos in them."""
        used = {os.sep.join(video.split(os.sep)[:level]) for video in self.videos}
        return [
            name for name in self.folders if name.count(os.sep) == level - 1 and name not in used
        ]


def survey(root: str | Path) -> Found:
    """Everything below a folder, sorted. Links are followed, but not to where they came from.

    Raises:
        UserError: the folder does not exist, one in it cannot be read, or there are no videos.
    """
    if not os.path.isdir(root):
        raise UserError(f"there is no folder {root}: give the folder of the videos")
    found = Found()
    try:
        _walk(os.fspath(root), "", [], found)
    except OSError as error:
        path = printable(error.filename)
        raise UserError(f"cannot read the folder {path}: {files.reason(error)}") from error
    for names in (found.videos, found.others, found.folders):
        names.sort()
    if not found.videos:
        raise UserError(f"{root} has no video files ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return found


def find_videos(root: str | Path) -> list[str]:
    """Paths of the video files under `root`, relative to it and sorted; raises as `survey`."""
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
    """What to call each entry: its path under `prefix`, or `<class>/<file>` of an absolute one.

    Raises:
        UserError: two entries would get one name.
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
                " relative to one folder and give that as --prefix"
            )
    return names
