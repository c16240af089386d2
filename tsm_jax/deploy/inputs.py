"""Videos named on a command line: files, folders, lists."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import NoReturn

from tsm_jax.data.lists import VIDEO_SUFFIXES, is_remote
from tsm_jax.errors import UserError
from tsm_jax.files import read_text, reason

LIST_SUFFIXES = (".txt", ".list")


def find_videos(inputs: Iterable[str]) -> list[str]:
    """The videos of `--input`, in order; folders are searched to any depth and sorted.

    Args:
        inputs: video files; folders; and lists (.txt or .list) with one path a line, relative to
            the current folder or else to the list's own. A label after the path, as training
            lists have it, is ignored. A file that does not exist stays, so that its absence is
            reported where its answer would be.

    Raises:
        UserError: a list or a folder cannot be read, or there is no video at all.
    """
    videos = [video for path in inputs for video in _expand(path)]
    if not videos:
        raise UserError(
            f"there are no videos in {', '.join(inputs)}: give files, folders of"
            f" {', '.join(VIDEO_SUFFIXES[:4])} and the like, or a .txt with one path a line"
        )
    return videos


def _expand(path: str) -> Iterator[str]:
    if os.path.isdir(path):
        yield from _in_folder(path)
    elif path.lower().endswith(LIST_SUFFIXES):
        yield from _in_list(path)
    else:
        yield path


def _in_folder(folder: str) -> Iterator[str]:
    for root, folders, names in os.walk(folder, onerror=_refuse):
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(VIDEO_SUFFIXES):
                yield os.path.join(root, name)


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


def refuse_inputs(outputs: Iterable[str], inputs: Iterable[str]) -> None:
    """Raises a UserError if an output is one of the inputs, under whatever name."""
    written = {_identity(path): path for path in outputs}
    written.pop(None, None)
    for path in inputs if written else ():
        if (same := written.get(_identity(path))) is not None:
            raise UserError(f"{same} is the input {path}: choose another output")


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
