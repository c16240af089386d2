"""Where answers go: a file of lines, pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from tsm_jax.errors import UserError

PICTURE_SUFFIX = ".png"


@contextmanager
def open_output(output: str) -> Iterator[IO[str]]:
    """A text file to write, `-` being the standard output.

    Raises:
        UserError: it cannot be written.
    """
    if output == "-":
        yield sys.stdout
        return
    try:
        os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
        file = open(output, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from error
    with file:
        yield file


def picture_path(target: str | None, videos: Sequence[str]) -> Callable[[str], str] | None:
    """Gives each video the path of its picture, or None for no target.

    Args:
        target: a .png for a single video, or a folder, which is made.
        videos: that may get a picture.

    Raises:
        UserError: one picture for several videos, or the folder cannot be made.
    """
    if target is None:
        return None
    one_file = target.lower().endswith(PICTURE_SUFFIX)
    if one_file and len(videos) > 1:
        raise UserError(
            f"--visualize {target} is one picture for {len(videos)} videos: give a folder"
        )
    folder = (os.path.dirname(target) or ".") if one_file else target
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
    taken: set[str] = set()

    def choose(video: str) -> str:
        return target if one_file else os.path.join(target, _free_name(video, taken))

    return choose


def _free_name(video: str, taken: set[str]) -> str:
    """`clip.png` for `a/clip.mp4`; `clip_2.png` for the second `clip` of a run."""
    stem = os.path.splitext(os.path.basename(video))[0]
    name, number = stem + PICTURE_SUFFIX, 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}{PICTURE_SUFFIX}"
    taken.add(name)
    return name
