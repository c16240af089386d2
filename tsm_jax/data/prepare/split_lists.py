"""Turns a folder of videos into lists for training, validation and test.

Its subfolders are the classes, or splits that contain the classes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from tsm_jax.data.lists import LABELS_FILE
from tsm_jax.data.prepare.entries import Found
from tsm_jax.data.prepare.make_lists import check_class_names, clip_list
from tsm_jax.errors import UserError
from tsm_jax.files import write_lines
from tsm_jax.terminal import printable

_SPLITS = ("train", "val", "test")

# Names of folders of splits, in upper or lower case.
_SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}

# Names of clips that were cut from the same recording: UCF-101's v_Archery_g01_c02 and Kinetics'
# <youtube id>_000004_000014.
_RECORDINGS = (re.compile(r"(.+_g\d+)_c\d+$"), re.compile(r"(.+)_\d{6}_\d{6}$"))

# For each split, its folder below the root and its clips as `<class>/<video>`.
_Members = dict[str, tuple[str, list[str]]]


def understand(root: str, found: Found, layout: str = "auto") -> tuple[dict[str, str], list[str]]:
    """Decides how to read a folder.

    Args:
        layout: `classes`, `splits`, or `auto` to decide by the names of the subfolders.

    Returns:
        The folder of each of the splits `train`, `val` and `test`, empty if the subfolders are
        classes; and the folders beside the splits, which are left out.

    Raises:
        UserError: The subfolders could be either, or cannot be what `layout` says.
    """
    folders = [name for name in found.folders if os.sep not in name]
    named = [name for name in folders if name.lower() in _SPLIT_OF]
    if layout == "classes" or (layout == "auto" and not named):
        return {}, []
    empty = found.without_videos(1)
    strangers = [name for name in folders if name not in named and name not in empty]
    objection = _objection(found, named)
    if layout == "auto" and (objection or strangers):
        why = objection or f"{printable(strangers[0])} is not a split"
        some = ", ".join(map(printable, folders[:5])) + ", ..." * (len(folders) > 5)
        raise UserError(
            f"{root}: the folders {', '.join(named)} are named like splits, but {why}: use --layout"
            f" splits to read them as <split>/<class>/<video>, or --layout classes to read {some}"
            " as classes"
        )
    if objection:
        raise UserError(f"{root} cannot be read as splits, because {objection}")
    for name in named:
        if name in empty:
            raise UserError(
                f"{os.path.join(root, name)} contains no videos: add some or delete the folder"
            )
    folder_of = {_SPLIT_OF[name.lower()]: name for name in named}
    return {split: folder_of[split] for split in _SPLITS if split in folder_of}, strangers


def _objection(found: Found, named: Sequence[str]) -> str:
    """Returns why these folders cannot be splits; empty if they can."""
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
            return f"{printable(video)} is not in a class folder"
    return ""


def split_folder(
    root: str,
    output: str,
    found: Found,
    splits: dict[str, str],
    *,
    val_share: float | None,
    seed: int = 0,
) -> tuple[dict[str, Counter[str]], int]:
    """Writes `train.list`, `val.list`, `test.list` and `labels.txt`, with absolute paths.

    Splits that are folders of `root` are kept. Otherwise, each class gives `val_share` of its
    recordings (rounded, at least one) to validation. Clips in the same folder below their
    class, or named as clips of the same recording, stay together: otherwise, validation would show
    what training has seen. Whether a recording is used for validation depends on its name and the
    seed, so adding videos moves few of the others.

    Args:
        found, splits: Results of `survey` and `understand` for `root`.
        val_share: Share in (0, 1), used if there is no validation set; None for no validation.

    Returns:
        For each split, the number of clips per class (`train` has all classes); and the number of
        recordings, which equals the number of clips if none belong together.

    Raises:
        UserError: A video is not in a class folder, there is only one class, no class has a second
            recording, or validation or test has a class that training lacks.
    """
    members: _Members = {
        name: (folder, [v.removeprefix(start) for v in found.videos if v.startswith(start)])
        for name, folder in splits.items()
        for start in (folder + os.sep,)
    } or {"train": ("", found.videos)}
    if "val" not in members and val_share is not None:
        folder, clips = members["train"]
        train, val = _drawn_split(os.path.join(root, folder), clips, val_share, seed)
        members |= {"train": (folder, train), "val": (folder, val)}
    counts = {name: Counter(map(_class_of, clips)) for name, (_, clips) in members.items()}
    classes = sorted(counts["train"])
    check_class_names(classes)
    _check(root, classes, members)
    _write(root, output, classes, members)
    recordings = len({recording_of(clip) for _, clips in members.values() for clip in clips})
    return counts, recordings


def _write(root: str, output: str, classes: list[str], members: _Members) -> None:
    paths = {name: os.path.join(output, f"{name}.list") for name in _SPLITS}
    for name in paths.keys() - members.keys():
        if os.path.exists(paths[name]):
            raise UserError(
                f"{paths[name]} was made from other videos: delete it or choose another --output"
            )
    label_of = {name: label for label, name in enumerate(classes)}
    lists = []
    for name, (folder, clips) in members.items():
        labelled = ((clip, label_of[_class_of(clip)], clip) for clip in clips)
        lists.append(clip_list(paths[name], os.path.join(root, folder), labelled, absolute=True))
    write_lines(os.path.join(output, LABELS_FILE), classes)
    for made in lists:
        write_lines(made.path, made.lines)


def _drawn_split(
    root: str, clips: Sequence[str], val_share: float, seed: int
) -> tuple[list[str], list[str]]:
    """Splits clips, `<class>/<video>` each, into training and validation."""
    by_class: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        if os.sep not in clip:
            raise UserError(
                f"{printable(os.path.join(root, clip))} is not in a class folder: put every"
                " video into a folder named after its class"
            )
        by_class[_class_of(clip)][recording_of(clip)].append(clip)
    train, val = [], []

    def draw(recording: str) -> bytes:
        return hashlib.sha256(f"{seed}:{recording}".encode(errors="surrogateescape")).digest()

    for recordings in by_class.values():
        drawn = sorted(recordings, key=draw)
        count = max(1, round(val_share * len(drawn))) if len(drawn) > 1 else 0
        count = min(count, len(drawn) - 1)
        for i, name in enumerate(drawn):
            (val if i < count else train).extend(recordings[name])
    return sorted(train), sorted(val)


def recording_of(clip: str) -> str:
    """Returns what a clip, `<class>/<video>` or `<class>/<folder>/<video>`, was cut from."""
    folder, name = os.path.split(clip)
    if os.sep in folder:
        return folder
    stem = os.path.splitext(name)[0]
    for pattern in _RECORDINGS:
        if match := pattern.match(stem):
            return os.path.join(folder, match[1])
    return clip


def _class_of(clip: str) -> str:
    return clip.split(os.sep)[0]


def _check(root: str, classes: Sequence[str], members: _Members) -> None:
    if len(classes) < 2:
        raise UserError(
            f"{root} has only one class, {printable(classes[0])}: expected <class>/<video> with at"
            " least two classes"
        )
    for name, (folder, clips) in members.items():
        strangers = sorted({_class_of(clip) for clip in clips} - set(classes))
        if strangers:
            raise UserError(
                f"{root}: {folder}/{printable(strangers[0])} has no folder with videos in"
                f" {members['train'][0]}: training must have every class"
            )
        if not clips and name == "val":
            raise UserError(
                f"{root}: every class has only one video (or recording), which leaves nothing for"
                " validation: add videos"
            )
