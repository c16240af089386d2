"""Writes lists in PaddleVideo's format, of Kinetics-400 or any folders of classes."""

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
    """A list, and the clips that belong in it but are missing.

    Attributes:
        path: Path of the list file.
        lines: Lines of the list.
        missing: Names of the missing clips.
        template: Template of the names of frames; empty for a list of videos.
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
    """Makes a list of clips.

    Args:
        path: Path of the list file.
        root: Folder of the clips.
        clips: (name, label, path below `root` or None if missing) of each clip.
        template: Template of the names of frames; empty for videos.
        absolute: Whether to list absolute paths instead of paths below `root`.

    Raises:
        UserError: None of the clips exists, or a path would not fit on a line.
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
    """Writes lists, all into the same folder, and `labels.txt` beside them.

    Raises:
        UserError: A class name would not fit on a line, or an existing `labels.txt` has other
            classes. Nothing is written then.
    """
    check_class_names(names)
    labels_path = Path(lists[0].path).with_name(LABELS_FILE)
    if labels_path.exists() and read_text(labels_path, "the class names").splitlines() != [*names]:
        raise UserError(
            f"{labels_path} has different classes or a different order: pass it as --labels, or"
            " write to another folder"
        )
    for made in lists:
        write_lines(made.path, made.lines)
    write_lines(labels_path, names)


def count_frames(folder: str, template: str = FRAME_TEMPLATE) -> int:
    """Counts the files in a folder whose names match `template`; 0 if there is no such folder."""
    start, end = re.split(r"\{.*\}", template)
    name = re.compile(rf"{re.escape(start)}\d+{re.escape(end)}")
    try:
        return sum(name.fullmatch(file) is not None for file in os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return 0


def read_names(path: str) -> list[str]:
    """Reads class names, one per line.

    Raises:
        UserError: The file cannot be read, is empty or repeats a name.
    """
    names = [name for _, name in numbered_lines(path)]
    if not names:
        raise UserError(f"{path} contains no names: write one class name per line")
    if len(set(names)) < len(names):
        raise UserError(f"{path} repeats a name: write every class name once")
    return names


def numbered_lines(path: str) -> Iterator[tuple[str, str]]:
    """Yields a file's non-blank lines, stripped, each preceded by its place for messages."""
    for number, line in enumerate(read_text(path, "the file").splitlines(), start=1):
        if line := line.strip():
            yield f"{path}, line {number}", line


def folder_list(
    root: str, list_path: str, *, labels: Sequence[str] | None = None, frames: bool = False
) -> ClipList:
    """Writes the list of `<class>/<video>`, or of `<class>/<folder of frames>`, below `root`.

    `labels.txt` is written beside it.

    Args:
        labels: Class names in label order, matched with folders by `_label_finder`; None for the
            sorted names of the folders.

    Raises:
        UserError: There are no clips, a folder is not a class, or an existing `labels.txt` has
            other classes.
    """
    clips = _frame_folders(root) if frames else find_videos(root)
    if loose := [clip for clip in clips if os.sep not in clip]:
        raise UserError(
            f"{printable(os.path.join(root, loose[0]))} is not in a class folder: expected"
            " <class>/<video>"
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

    Videos are found by name, `<youtube_id>_<start>_<end>` with six digits each, anywhere below
    `root`; missing ones are counted. Other arguments are as for `folder_list`.

    Raises:
        UserError: The file is not such a csv, has an unknown class, or none of the videos exists.
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
    """Raises a UserError for a name that would be read differently from `labels.txt`."""
    for name in names:
        is_utf8 = not any("\ud800" <= letter <= "\udfff" for letter in name)
        if name.splitlines() != [name.strip()] or not is_utf8:
            raise UserError(
                f"the class name {printable(repr(name))} must be one line of UTF-8 text without"
                " surrounding blanks: rename its folder"
            )


def class_key(name: str) -> str:
    """Reduces a name to letters and digits: `massaging person's head` has several spellings."""
    return re.sub(r"[\W_]", "", name.lower())


def _label_finder(names: Sequence[str]) -> Callable[[str, str], int]:
    """Returns a function that maps a class name, and its description for messages, to its label.

    This is the label of the same name, or else of the only name with the same key. If there is
    none, the function raises a UserError.
    """
    exact = {name: label for label, name in enumerate(names)}
    labels_of_key = defaultdict(list)
    for name, label in exact.items():
        labels_of_key[class_key(name)].append(label)

    def find(name: str, what: str) -> int:
        of_key = labels_of_key.get(class_key(name), [])
        label = exact.get(name, of_key[0] if len(of_key) == 1 else None)
        if label is None:
            raise UserError(
                f"{printable(what)} is not one of the classes {names[0]} to {names[-1]}"
            )
        return label

    return find


def _annotations(path: str) -> Iterator[tuple[str, str]]:
    """Yields (name of the video without extension, class)."""
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
    """Returns `<class>/<folder>` below `root`, sorted."""
    if not os.path.isdir(root):
        raise UserError(f"the folder {root} does not exist: give the folder of the frames")
    return [
        os.path.join(name, clip)
        for name in sorted(os.listdir(root))
        if not name.startswith(".") and os.path.isdir(os.path.join(root, name))
        for clip in sorted(os.listdir(os.path.join(root, name)))
        if os.path.isdir(os.path.join(root, name, clip))
    ]
