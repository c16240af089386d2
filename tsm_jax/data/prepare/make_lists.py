"""Lists as PaddleVideo writes them, of Kinetics-400 or any folders of classes."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tsm_jax.data.lists import FRAME_TEMPLATE, LABELS_FILE
from tsm_jax.data.prepare.entries import find_videos, list_line
from tsm_jax.errors import UserError
from tsm_jax.files import read_text, write_lines
from tsm_jax.terminal import printable


@dataclass(frozen=True)
class ClipList:
    """A list, by its path, and the clips that belong in it but are not there.

    Attributes:
        template: of the names of frames; empty for a list of videos.
    """

    path: str
    lines: list[str]
    missing: list[str]
    template: str = ""


def clip_list(
    path: str,
    root: str,
    clips: Iterable[tuple[str, int, str | None]],
    template: str = "",
    *,
    absolute: bool = False,
) -> ClipList:
    """The list of clips, each by its name, its label and its path below `root`, None if missing.

    Raises:
        UserError: none of the clips is there, or the name of one would not fit on a line.
    """
    lines, missing = [], []
    for clip, label, found in clips:
        place = os.path.join(root, found or "")
        count = count_frames(place, template) if template and found else None
        if found is None or count == 0:
            missing.append(clip)
        else:
            lines.append(list_line(os.path.abspath(place) if absolute else found, label, count))
    if not lines:
        raise UserError(
            f"{root} has none of the {len(missing)} clips of {path}"
            + (f", such as {printable(missing[0])}" if missing else "")
            + ": check the folder"
        )
    return ClipList(path, lines, missing, template)


def write_lists(lists: Sequence[ClipList], names: Sequence[str]) -> None:
    """Writes lists, all in one folder, and `labels.txt` beside them.

    Raises:
        UserError: a name of a class would not fit on a line, or a `labels.txt` there has other
            classes. Then nothing is written.
    """
    check_class_names(names)
    labels_path = Path(lists[0].path).with_name(LABELS_FILE)
    if labels_path.exists() and read_text(labels_path, "the class names").splitlines() != [*names]:
        raise UserError(
            f"{labels_path} has other classes, or in another order: give it as --labels, or write"
            " to another folder"
        )
    for made in lists:
        write_lines(made.path, made.lines)
    write_lines(labels_path, names)


def count_frames(folder: str, template: str = FRAME_TEMPLATE) -> int:
    """Files in a folder that are named as `template` says; 0 without a folder."""
    start, end = re.split(r"\{.*\}", template)
    name = re.compile(rf"{re.escape(start)}\d+{re.escape(end)}")
    try:
        return sum(name.fullmatch(file) is not None for file in os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return 0


def read_names(path: str) -> list[str]:
    """Class names, one a line; a UserError if the file cannot be read, is empty or repeats one."""
    names = [name for _, name in numbered_lines(path)]
    if not names:
        raise UserError(f"{path} has no names: write one class name a line")
    if len(set(names)) < len(names):
        raise UserError(f"{path} has a name twice: write every class name once")
    return names


def numbered_lines(path: str) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not blank, stripped, each with its place for messages."""
    for number, line in enumerate(read_text(path, "the file").splitlines(), start=1):
        if line := line.strip():
            yield f"{path}, line {number}", line


def folder_list(
    root: str, list_path: str, *, labels: Sequence[str] | None = None, frames: bool = False
) -> ClipList:
    """Writes the list of `<class>/<video>`, or of `<class>/<folder of frames>`, below `root`.

    `labels.txt` goes beside it.

    Args:
        labels: class names in the order of the labels, found as `_label_finder` does; None for
            the folders' names, sorted.

    Raises:
        UserError: there are no clips, a folder is not a class, or `labels.txt` there has others.
    """
    clips = _frame_folders(root) if frames else find_videos(root)
    if loose := [clip for clip in clips if os.sep not in clip]:
        raise UserError(
            f"{printable(os.path.join(root, loose[0]))} is in no class: expected <class>/<video>"
        )
    classes = sorted({clip.split(os.sep)[0] for clip in clips})
    names = classes if labels is None else labels
    find_label = _label_finder(names)
    label_of = {name: find_label(name, os.path.join(root, name)) for name in classes}
    labelled = ((clip, label_of[clip.split(os.sep)[0]], clip) for clip in clips)
    made = clip_list(list_path, root, labelled, FRAME_TEMPLATE * frames)
    write_lists([made], names)
    return made


def annotated_list(
    annotations: str, root: str, list_path: str, *, labels: Sequence[str], frames: bool = False
) -> ClipList:
    """Writes the list of a Kinetics annotation file (`label,youtube_id,time_start,time_end,split`).

    Videos are found by name, `<youtube_id>_<start>_<end>` with six digits each, anywhere under
    `root`; those that are missing are counted. Other arguments as for `folder_list`.

    Raises:
        UserError: the file is not such a csv, has an unknown class, or no video is there.
    """
    clips = _frame_folders(root) if frames else find_videos(root)
    by_stem = {Path(clip).stem: clip for clip in clips}
    label_of = _label_finder(labels)
    labelled = (
        (stem, label_of(name, f"{annotations}: {name!r}"), by_stem.get(stem))
        for stem, name in _annotations(annotations)
    )
    made = clip_list(list_path, root, labelled, FRAME_TEMPLATE * frames)
    write_lists([made], labels)
    return made


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


def _frame_folders(root: str) -> list[str]:
    """`<class>/<folder>` under `root`, sorted."""
    if not os.path.isdir(root):
        raise UserError(f"there is no folder {root}: give the folder of the frames")
    return [
        os.path.join(name, clip)
        for name in sorted(os.listdir(root))
        if not name.startswith(".") and os.path.isdir(os.path.join(root, name))
        for clip in sorted(os.listdir(os.path.join(root, name)))
        if os.path.isdir(os.path.join(root, name, clip))
    ]
