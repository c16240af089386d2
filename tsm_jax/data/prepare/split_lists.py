"""One folder of videos to lists of training, validation and test."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tsm_jax.data.lists import LABELS_FILE
from tsm_jax.data.prepare.entries import SPLITS, list_line, survey, understand
from tsm_jax.data.prepare.make_lists import WrittenList, check_class_names
from tsm_jax.errors import UserError
from tsm_jax.files import write_lines
from tsm_jax.terminal import printable

# Names of clips that were cut from one recording: UCF-101's v_Archery_g01_c02 and Kinetics'
# <youtube id>_000004_000014.
_RECORDINGS = (re.compile(r"(.+_g\d+)_c\d+$"), re.compile(r"(.+)_\d{6}_\d{6}$"))


@dataclass(frozen=True)
class SplitLists:
    """What was written.

    Attributes:
        lists: of `train`, and of `val` and `test` if there are any.
        counts: for each of them, the clips of each of its classes.
        recordings: groups of clips that stay together; as many as clips if there are none.
    """

    lists: dict[str, WrittenList]
    counts: dict[str, Counter[str]]
    labels: str
    classes: list[str]
    recordings: int


def split_folder(
    root: str, output: str, *, val_share: float | None, seed: int = 0, layout: str = "auto"
) -> SplitLists:
    """Writes `train.list`, `val.list`, `test.list` and `labels.txt`, with absolute paths.

    Splits that are folders of `root` stay as they are. Otherwise every class gives `val_share` of
    its recordings, rounded, but at least one, to validation. Clips in one folder below their class,
    or named as clips of one recording, stay together: otherwise validation would show what
    training has seen. Whether a recording validates depends on its name and the seed, so new videos
    move few of the others.

    Args:
        root: folder of `<class>/<video>` or `<split>/<class>/<video>`.
        val_share: in (0, 1), of a training set without a validation set; None for no validation.
        layout: how `root` is read, as for `understand`.

    Raises:
        UserError: there are no videos, one is in no class, there is one class only, none has a
            second recording, or validation or test has a class that training does not have.
    """
    found = survey(root)
    splits = understand(root, found, layout).splits
    # Of each split the folder, and its clips as `<class>/<video>`.
    members = {
        name: (folder, [v.removeprefix(start) for v in found.videos if v.startswith(start)])
        for name, folder in splits.items()
        for start in (folder + os.sep,)
    } or {"train": ("", found.videos)}
    if "val" not in members and val_share is not None:
        folder, clips = members["train"]
        train, val = _drawn_split(os.path.join(root, folder), clips, val_share, seed)
        members |= {"train": (folder, train), "val": (folder, val)}
    classes = sorted({_class_of(clip) for clip in members["train"][1]})
    check_class_names(classes)
    _check(root, classes, members)
    return _write(root, output, classes, members)


def _write(
    root: str, output: str, classes: list[str], members: dict[str, tuple[str, list[str]]]
) -> SplitLists:
    paths = {name: os.path.join(output, f"{name}.list") for name in SPLITS}
    for name in paths.keys() - members.keys():
        if os.path.exists(paths[name]):
            raise UserError(
                f"{paths[name]} is there from other videos: delete it or choose another --output"
            )
    label_of = {name: label for label, name in enumerate(classes)}
    lines = {
        name: [
            list_line(os.path.abspath(os.path.join(root, folder, clip)), label_of[_class_of(clip)])
            for clip in clips
        ]
        for name, (folder, clips) in members.items()
    }
    labels_path = os.path.join(output, LABELS_FILE)
    write_lines(labels_path, classes)
    for name in members:
        write_lines(paths[name], lines[name])
    written = {name: WrittenList(paths[name], len(lines[name]), []) for name in members}
    counts = {name: Counter(map(_class_of, clips)) for name, (_, clips) in members.items()}
    recordings = len({recording_of(clip) for _, clips in members.values() for clip in clips})
    return SplitLists(written, counts, labels_path, classes, recordings)


def _drawn_split(
    root: str, clips: Sequence[str], val_share: float, seed: int
) -> tuple[list[str], list[str]]:
    """Training and validation of `<class>/<video>`."""
    by_class: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        if os.sep not in clip:
            raise UserError(
                f"{printable(os.path.join(root, clip))} is in no class: put every video into a"
                " folder named as its class"
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
    """What a clip, `<class>/<video>` or `<class>/<folder>/<video>`, was cut from."""
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


def _check(root: str, classes: Sequence[str], members: dict[str, tuple[str, list[str]]]) -> None:
    if len(classes) < 2:
        raise UserError(
            f"{root} has one class only, {printable(classes[0])}: expected <class>/<video> with at"
            " least two"
        )
    for name, (folder, clips) in members.items():
        strangers = sorted({_class_of(clip) for clip in clips} - set(classes))
        if strangers:
            raise UserError(
                f"{root}: {folder}/{printable(strangers[0])} has no folder with videos in"
                f" {members['train'][0]}: the classes must be the same"
            )
        if not clips and name == "val":
            raise UserError(
                f"{root}: every class has one video (or one recording) only, so there is nothing to"
                " validate on: add videos"
            )
