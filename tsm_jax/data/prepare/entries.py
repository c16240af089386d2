"""Which clips a command works on: those of a list, or the video files under a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tsm_jax.data.lists import VIDEO_SUFFIXES, ClipEntry, read_frame_list, read_video_list
from tsm_jax.errors import UserError

_ANY_LABEL = 2**31  # preparation does not know how many classes the model will have


def read_entries(source: str, list_path: str, *, prefix: str, suffix: str) -> list[ClipEntry]:
    """The entries of a list for `source`, `videos` or `frames`. Raises `UserError` as they do."""
    read = read_frame_list if source == "frames" else read_video_list
    return read(list_path, prefix=prefix, suffix=suffix, num_classes=_ANY_LABEL)


def clean_lines(list_path: str, usable: Sequence[bool]) -> list[str]:
    """The list's own lines whose entries are usable, as they stand there."""
    with open(list_path, encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = [line.strip() for line in file.read().split("\n") if line.strip()]
    return [line for line, keep in zip(lines, usable, strict=True) if keep]


def list_line(path: str, label: int, num_frames: int | None = None) -> str:
    """A line of a list of videos, or of frames if their number is given."""
    return f"{path} {label}" if num_frames is None else f"{path} {num_frames} {label}"


def find_videos(root: str | Path) -> list[str]:
    """Paths of the video files under `root`, relative to it and sorted.

    Raises:
        UserError: the folder does not exist or has none.
    """
    if not os.path.isdir(root):
        raise UserError(f"there is no folder {root}: give the folder of the videos")
    found = sorted(_walk(root, ""))
    if not found:
        raise UserError(f"{root} has no video files ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return found


def _walk(root: str | Path, inside: str) -> Iterator[str]:
    with os.scandir(os.path.join(root, inside)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = os.path.join(inside, entry.name)
            if entry.is_dir():
                yield from _walk(root, path)
            elif os.path.splitext(entry.name)[1].lower() in VIDEO_SUFFIXES:
                yield path


def short_names(entries: Sequence[ClipEntry], prefix: str) -> list[str]:
    """What to call each entry: its path under `prefix`, or `<class>/<file>` of an absolute one.

    Raises:
        UserError: two entries would get one name.
    """
    names = [_short_name(entry.path, prefix) for entry in entries]
    seen: dict[str, str] = {}
    for name, entry in zip(names, entries, strict=True):
        if seen.setdefault(name, entry.path) != entry.path:
            raise UserError(
                f"{seen[name]} and {entry.path} would both be called {name}: write the list with"
                " paths relative to one folder and give that as --prefix"
            )
    return names


def _short_name(path: str, prefix: str) -> str:
    inside = os.path.relpath(path, prefix) if prefix else path
    if os.path.isabs(inside) or inside.startswith(os.pardir):
        inside = os.path.join(*Path(path).parts[-2:])
    return os.path.normpath(inside)
