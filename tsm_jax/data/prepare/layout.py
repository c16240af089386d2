"""Whether the folders of a data set are its classes, or its splits with the classes in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from tsm_jax.data.prepare.entries import Found
from tsm_jax.errors import UserError
from tsm_jax.terminal import printable

LAYOUTS = ("auto", "classes", "splits")
SPLITS = ("train", "val", "test")

# How folders of splits are called, in any case.
_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class Layout:
    """How a folder is read.

    Attributes:
        splits: from `train`, `val` and `test` to the folders that are those; empty where the
            folders are classes.
        left_out: folders beside those of the splits.
    """

    splits: dict[str, str]
    left_out: list[str]


def understand(root: str, found: Found, layout: str = "auto") -> Layout:
    """Reads folders named as splits as such, where nothing speaks for another reading.

    Args:
        root: the folder.
        found: in it.
        layout: one of `LAYOUTS`; `auto` refuses what could be both.

    Raises:
        UserError: it could be both, or is not what `layout` says.
    """
    folders = [name for name in found.folders if os.sep not in name]
    named = [name for name in folders if name.lower() in _SPLIT_OF]
    if layout == "classes" or (layout == "auto" and not named):
        return Layout({}, [])
    empty = found.without_videos(1)
    strangers = [name for name in folders if name not in named and name not in empty]
    objection = _objection(found, named)
    if layout == "auto" and (objection or strangers):
        _refuse(root, folders, named, objection or f"{printable(strangers[0])} is not a split")
    if objection:
        raise UserError(f"{root}: it cannot be read as splits, since {objection}")
    for name in named:
        if name in empty:
            raise UserError(f"{os.path.join(root, name)} has no videos: add some or delete it")
    folder_of = {_SPLIT_OF[name.lower()]: name for name in named}
    return Layout({split: folder_of[split] for split in SPLITS if split in folder_of}, strangers)


def _objection(found: Found, named: Sequence[str]) -> str:
    """Why these folders cannot be splits; empty if they can."""
    splits = [_SPLIT_OF[name.lower()] for name in named]
    if "train" not in splits:
        return "there is no folder train"
    if len(named) < 2:
        return "there is no folder val or test"
    if len(set(splits)) < len(splits):
        return f"two of {', '.join(named)} are the same split"
    for video in found.videos:
        parts = video.split(os.sep)
        if len(parts) == 1 or (len(parts) == 2 and parts[0] in named):
            return f"{printable(video)} is in no class"
    return ""


def _refuse(root: str, folders: Sequence[str], named: Sequence[str], why: str) -> None:
    some = ", ".join(map(printable, folders[:5])) + ", ..." * (len(folders) > 5)
    raise UserError(
        f"{root}: the folders {', '.join(named)} are named as splits, but {why}: with --layout"
        f" splits they are read as <split>/<class>/<video>, with --layout classes {some} are the"
        " classes"
    )
