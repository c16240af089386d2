"""One folder of videos to a training and a validation list."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tsm_jax.data.prepare.atomic import write_lines
from tsm_jax.data.prepare.entries import find_videos, list_line
from tsm_jax.data.prepare.make_lists import LABELS_FILE, WrittenList
from tsm_jax.errors import UserError

_PARTS = ("train", "val")

# Names of clips that were cut from one recording: UCF-101's v_Archery_g01_c02 and Kinetics'
# <youtube id>_000004_000014.
_RECORDINGS = (re.compile(r"(.+_g\d+)_c\d+$"), re.compile(r"(.+)_\d{6}_\d{6}$"))


@dataclass(frozen=True)
class SplitLists:
    """What was written.

    Attributes:
        lists: of training and of validation.
        labels: path of the class names.
        classes: in the order of the labels.
        recordings: groups of clips that may not be parted; as many as clips if there are none.
        only_training: classes of one recording, which validation cannot have.
        given: the folders `train` and `val` decided, not a share.
    """

    lists: tuple[WrittenList, WrittenList]
    labels: str
    classes: list[str]
    recordings: int
    only_training: list[str]
    given: bool


def split_folder(root: str, output: str, *, val_share: float, seed: int = 0) -> SplitLists:
    """Writes `train.list`, `val.list` and `labels.txt` of `<class>/<video>`, absolute paths.

    Every class gives `val_share` of its recordings, rounded, but at least one, to validation. Clips
    in one folder below their class, or named as clips of one recording, stay together: otherwise
    validation would show what training has seen. Whether a recording validates depends on its
    name and the seed, so new videos move few of the others. Where `root` has `train/<class>` and
    `val/<class>` and nothing else, those are the split.

    Args:
        root: folder of the classes.
        output: folder to write into.
        val_share: in (0, 1).
        seed: another one, another split.

    Raises:
        UserError: there are no videos, one lies in no class, there is one class only, or none has
            a second recording.
    """
    clips = find_videos(root)
    given = _is_split_already(clips)
    members = _given_split(clips) if given else _drawn_split(root, clips, val_share, seed)
    train, val = members["train"], members["val"]
    classes = sorted({_class_of(clip, given) for clip in train})
    _check(root, classes, {_class_of(clip, given) for clip in val})
    labels = {name: label for label, name in enumerate(classes)}
    written = []
    for part in _PARTS:
        path = os.path.join(output, f"{part}.list")
        lines = [
            list_line(os.path.abspath(os.path.join(root, clip)), labels[_class_of(clip, given)])
            for clip in members[part]
        ]
        write_lines(path, lines)
        written.append(WrittenList(path, len(lines), []))
    labels_path = os.path.join(output, LABELS_FILE)
    write_lines(labels_path, classes)
    validated = {_class_of(clip, given) for clip in val}
    return SplitLists(
        lists=(written[0], written[1]),
        labels=labels_path,
        classes=classes,
        recordings=len({recording_of(clip) for clip in clips}),
        only_training=[name for name in classes if name not in validated],
        given=given,
    )


def _is_split_already(clips: Sequence[str]) -> bool:
    return {clip.split(os.sep)[0] for clip in clips} == set(_PARTS) and all(
        clip.count(os.sep) >= 2 for clip in clips
    )


def _given_split(clips: Sequence[str]) -> dict[str, list[str]]:
    return {part: [clip for clip in clips if clip.split(os.sep)[0] == part] for part in _PARTS}


def _drawn_split(
    root: str, clips: Sequence[str], val_share: float, seed: int
) -> dict[str, list[str]]:
    by_class: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        if os.sep not in clip:
            raise UserError(
                f"{os.path.join(root, clip)} lies in no class: put every video into a folder"
                " named as its class"
            )
        by_class[clip.split(os.sep)[0]][recording_of(clip)].append(clip)
    members: dict[str, list[str]] = {part: [] for part in _PARTS}
    for recordings in by_class.values():
        drawn = sorted(recordings, key=lambda name: _draw(name, seed))
        count = max(1, round(val_share * len(drawn))) if len(drawn) > 1 else 0
        count = min(count, len(drawn) - 1)
        for i, name in enumerate(drawn):
            members["val" if i < count else "train"] += recordings[name]
    return {part: sorted(names) for part, names in members.items()}


def recording_of(clip: str) -> str:
    """What a clip, `<class>/<video>` or `<class>/<folder>/<video>`, was cut from."""
    folder, name = os.path.split(clip)
    if os.sep in folder:
        return folder
    stem = os.path.splitext(name)[0]
    for pattern in _RECORDINGS:
        if match := pattern.match(stem):
            return os.path.join(folder, match[1])
    return clip


def _draw(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()


def _class_of(clip: str, given: bool) -> str:
    return clip.split(os.sep)[1 if given else 0]


def _check(root: str, classes: Sequence[str], validated: set[str]) -> None:
    if len(classes) < 2:
        raise UserError(
            f"{root} has one class only, {classes[0]}: expected <class>/<video> with at least two"
        )
    strangers = sorted(validated - set(classes))
    if strangers:
        raise UserError(
            f"{root}: val/{strangers[0]} has no folder in train/: they must be the same"
        )
    if not validated:
        raise UserError(
            f"{root}: every class has one video (or one recording) only, so there is nothing to"
            " validate on: add videos"
        )
