"""Where the pictures of answers go."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec

from tsm_jax.deploy.inputs import refuse_inputs
from tsm_jax.errors import UserError
from tsm_jax.files import reason, replacing

PICTURE_SUFFIX = ".png"

_LONGEST_STEM = 200  # bytes of a picture's name; file systems allow 255


def picture_paths(
    target: str | None, videos: Sequence[str], *, inputs: Iterable[str] = (), overwrite: bool
) -> list[str] | None:
    """The path of each video's picture, or None for no target; makes the folder.

    Args:
        target: a .png for a single video, or a folder.
        videos: that may get a picture.
        inputs: files that must not be written over.
        overwrite: whether pictures may be replaced.

    Raises:
        UserError: one picture for several videos, one that exists, the folder cannot be made, or
            nothing here can draw.
    """
    if target is None:
        return None
    if find_spec("matplotlib") is None:
        raise UserError("--visualize draws with matplotlib: pip install matplotlib")
    one_file = target.lower().endswith(PICTURE_SUFFIX)
    if one_file and len(videos) > 1:
        raise UserError(
            f"--visualize {target} is one picture for {len(videos)} videos: give a folder"
        )
    folder = (os.path.dirname(target) or ".") if one_file else target
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {reason(error)}") from error
    taken: set[str] = set()
    paths = [target if one_file else os.path.join(target, _free_name(v, taken)) for v in videos]
    existing = [path for path in paths if os.path.lexists(path)]
    if existing and not overwrite:
        raise UserError(
            f"{existing[0]} exists already: choose another place, or --overwrite replaces pictures"
        )
    refuse_inputs(existing, inputs)
    return paths


def save_picture(png: bytes, path: str) -> None:
    """Writes a picture; it is complete or not there.

    Raises:
        UserError: it cannot be written.
    """
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(png)


def _free_name(video: str, taken: set[str]) -> str:
    """`clip.png` for `a/clip.mp4`; `clip_2.png` for the second `clip` of a run."""
    stem = os.path.splitext(os.path.basename(video))[0]
    stem = os.fsdecode(os.fsencode(stem)[:_LONGEST_STEM])
    name, number = stem + PICTURE_SUFFIX, 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}{PICTURE_SUFFIX}"
    taken.add(name)
    return name
