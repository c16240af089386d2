"""Lists as PaddleVideo writes them, of UCF-101, Kinetics-400 or any folders of classes."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsm_jax.data.prepare.entries import find_videos, list_line
from tsm_jax.errors import UserError
from tsm_jax.files import read_text, write_lines
from tsm_jax.terminal import printable

LABELS_FILE = "labels.txt"

_UNPACK = "unpack the splits of UCF-101"
_SPLITS = (1, 2, 3)
_PARTS = {"train": "trainlist", "val": "testlist"}


@dataclass(frozen=True)
class WrittenList:
    """A list that was written; `missing` are clips that belong in it but are not there."""

    path: str
    num_clips: int
    missing: list[str]


def ucf101_lists(
    splits: str, output: str, *, videos: str | None = None, frames: str | None = None
) -> list[WrittenList]:
    """Lists of the official splits, named and written as PaddleVideo's `build_ucf101_file_list.py`.

    Paths are absolute; those of videos lack their `.avi` (`config.data.suffix` has it).

    Args:
        splits: the unpacked folder `ucfTrainTestlist`.
        output: folder of the lists and `labels.txt`.
        videos: folder with `<Class>/v_<Class>_gNN_cNN.avi`; None for no lists of videos.
        frames: folder with `<Class>/v_<Class>_gNN_cNN/img_00001.jpg`; None for no lists of frames.

    Raises:
        UserError: a split file is missing or wrong, or none of its clips is there.
    """
    names = _ucf101_classes(os.path.join(splits, "classInd.txt"))
    labels = {name: label for label, name in enumerate(names)}
    written = []
    for split in _SPLITS:
        for part, stem in _PARTS.items():
            split_file = os.path.join(splits, f"{stem}{split:02}.txt")
            if not os.path.exists(split_file):
                if split == 1:
                    raise UserError(f"there is no {split_file}: unpack the splits of UCF-101")
                continue
            clips = _ucf101_clips(split_file, labels)
            start = os.path.join(output, f"ucf101_{part}_split_{split}_")
            for kind, root in (("videos", videos), ("rawframes", frames)):
                if root is not None:
                    path, is_frames = f"{start}{kind}.txt", kind == "rawframes"
                    written.append(
                        _write_list(
                            path, clips, root, frames=is_frames, suffix=".avi", absolute=True
                        )
                    )
    write_lines(os.path.join(output, LABELS_FILE), names)
    return written


def _ucf101_classes(path: str) -> list[str]:
    """`1 ApplyEyeMakeup` is label 0."""
    rows = [line.split() for line in _read_lines(path, _UNPACK)]
    if any(len(row) != 2 or row[0] != str(i) for i, row in enumerate(rows, start=1)):
        raise UserError(f"{path}: expected lines '1 ClassName', numbered from 1")
    return [name for _, name in rows]


def _ucf101_clips(path: str, labels: dict[str, int]) -> list[tuple[str, int]]:
    """(`Class/v_...` without .avi, label) of `Class/v_....avi 1` or, in test lists, without it."""
    clips = []
    for line in _read_lines(path, _UNPACK):
        clip = os.path.splitext(line.split()[0])[0]
        name = clip.partition("/")[0]
        if name not in labels:
            raise UserError(f"{path}: {line} is of no class in classInd.txt")
        clips.append((clip, labels[name]))
    return clips


def _read_lines(path: str, advice: str) -> list[str]:
    try:
        text = read_text(path, "the file")
    except UserError as error:
        raise UserError(f"{error}; {advice}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def count_frames(folder: str) -> int:
    """Files `img_00001.jpg` and so on in a folder; 0 without a folder."""
    try:
        return sum(name.startswith("img_") for name in os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _write_list(
    path: str,
    clips: Sequence[tuple[str, int]],
    root: str,
    *,
    frames: bool,
    suffix: str = "",
    absolute: bool = False,
    known: Container[str] = (),
) -> WrittenList:
    """The list of (path below `root`, label); those are missing that are neither known nor found.

    Args:
        suffix: of the files of videos, which the list leaves out.
    """
    lines, missing = [], []
    for clip, label in clips:
        place = os.path.join(root, clip)
        count = count_frames(place) if frames else None
        if count or (not frames and (clip in known or os.path.isfile(place + suffix))):
            lines.append(list_line(os.path.abspath(place) if absolute else clip, label, count))
        else:
            missing.append(clip)
    if not lines:
        raise UserError(f"{root} has none of the {len(clips)} clips of {path}: check the folder")
    write_lines(path, lines)
    return WrittenList(path, len(lines), missing)


def folder_list(
    root: str, list_path: str, *, labels: Sequence[str] | None = None, frames: bool = False
) -> WrittenList:
    """The list of `<class>/<video>`, or of `<class>/<folder of frames>`, relative to `root`.

    `labels.txt` goes beside it.

    Args:
        labels: class names in the order of the labels, found as `_label_finder` does; None for
            the folders' names, sorted.
        frames: the classes hold folders of frames.

    Raises:
        UserError: there are no clips, a folder is not a class, or `labels.txt` there has others.
    """
    clips = list(_frame_folders(root)) if frames else find_videos(root)
    loose = [clip for clip in clips if os.sep not in clip]
    if loose:
        raise UserError(
            f"{printable(os.path.join(root, loose[0]))} is in no class: expected <class>/<video>"
        )
    classes = sorted({clip.split(os.sep)[0] for clip in clips})
    names = list(labels) if labels is not None else classes
    find_label = _label_finder(names)
    label_of = {name: find_label(name, os.path.join(root, name)) for name in classes}
    labelled = [(clip, label_of[clip.split(os.sep)[0]]) for clip in clips]
    return _write_with_labels(list_path, labelled, root, names, frames=frames, known=set(clips))


def annotated_list(
    annotations: str, root: str, list_path: str, *, labels: Sequence[str], frames: bool = False
) -> WrittenList:
    """The list of a Kinetics annotation file (`label,youtube_id,time_start,time_end,split`).

    Videos are found by name, `<youtube_id>_<start>_<end>` with six digits each, anywhere under
    `root`; those that are missing are counted. Other arguments as for `folder_list`.

    Raises:
        UserError: the file is not such a csv, has an unknown class, or no video is there.
    """
    clips = list(_frame_folders(root)) if frames else find_videos(root)
    by_stem = {Path(clip).stem: clip for clip in clips}
    label_of = _label_finder(labels)
    labelled = [
        (by_stem.get(stem, stem), label_of(name, f"{annotations}: {name!r}"))
        for stem, name in _annotations(annotations)
    ]
    return _write_with_labels(
        list_path, labelled, root, list(labels), frames=frames, known=set(clips)
    )


def _write_with_labels(
    list_path: str, clips: list[tuple[str, int]], root: str, names: list[str], **how: Any
) -> WrittenList:
    check_class_names(names)
    path = Path(list_path).with_name(LABELS_FILE)
    if path.exists() and read_text(path, "the class names").splitlines() != names:
        raise UserError(
            f"{path} has other classes than {root}: give it as --labels, or write to another folder"
        )
    written = _write_list(list_path, clips, root, **how)
    write_lines(path, names)
    return written


def check_class_names(names: Sequence[str]) -> None:
    """Raises a UserError for a name that would be read from `labels.txt` as another one."""
    for name in names:
        is_utf8 = not any("\ud800" <= letter <= "\udfff" for letter in name)
        if name.splitlines() != [name.strip()] or not is_utf8:
            raise UserError(
                f"the class {printable(repr(name))} is not a line of text in UTF-8 without blanks"
                " around it: rename its folder"
            )


def class_key(name: str) -> str:
    """Kinetics' folders spell `massaging person's head` in several ways: only letters count."""
    return re.sub(r"[\W_]", "", name.lower())


def _label_finder(names: Sequence[str]) -> Callable[[str, str], int]:
    """From a class, and what it is to the user, to its label.

    That of the same name, else of the only one with its key; a UserError if there is none.
    """
    exact = {name: label for label, name in enumerate(names)}
    labels_of_key = defaultdict(list)
    for name, label in exact.items():
        labels_of_key[class_key(name)].append(label)

    def find(name: str, what: str) -> int:
        of_key = labels_of_key.get(class_key(name), [])
        label = exact.get(name, of_key[0] if len(of_key) == 1 else None)
        if label is None:
            raise UserError(f"{printable(what)} is not a class of {names[0]} to {names[-1]}")
        return label

    return find


def _annotations(path: str) -> Iterator[tuple[str, str]]:
    """(name of the video without extension, class)."""
    text = read_text(path, "the annotations")
    try:
        for row in csv.DictReader(io.StringIO(text, newline="")):
            start, end = int(float(row["time_start"])), int(float(row["time_end"]))
            yield f"{row['youtube_id']}_{start:06}_{end:06}", row["label"] or ""
    except KeyError as error:
        raise UserError(
            f"{path} has no column {error}: expected label,youtube_id,time_start,time_end"
        ) from error
    except (ArithmeticError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"cannot read the annotations {path}: {printable(error)}") from error


def _frame_folders(root: str) -> Iterator[str]:
    """`<class>/<folder>` under `root`, sorted."""
    if not os.path.isdir(root):
        raise UserError(f"there is no folder {root}: give the folder of the frames")
    for name in sorted(os.listdir(root)):
        folder = os.path.join(root, name)
        if not name.startswith(".") and os.path.isdir(folder):
            for clip in sorted(os.listdir(folder)):
                if os.path.isdir(os.path.join(folder, clip)):
                    yield os.path.join(name, clip)


def read_names(path: str) -> list[str]:
    """Class names, one a line; a UserError if the file cannot be read, is empty or repeats one."""
    names = _read_lines(path, "write one class name a line")
    if not names:
        raise UserError(f"{path} has no names: write one class name a line")
    if len(set(names)) < len(names):
        raise UserError(f"{path} has a name twice: write every class name once")
    return names
