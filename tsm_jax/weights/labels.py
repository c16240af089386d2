"""Class names in label order: those of Kinetics-400 and UCF-101, or a user's own file."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from importlib import resources

from tsm_jax.errors import UserError
from tsm_jax.files import read_text
from tsm_jax.stored import shown

_FILES = {400: "kinetics400.txt", 101: "ucf101.txt"}


def labels_for(num_classes: int) -> list[str] | None:
    """The names that come with the package for a head of this size, or None.

    400 is taken for Kinetics-400 and 101 for UCF-101. PaddleVideo, MIT and mmaction2 number the
    classes alike (UCF-101: `classInd.txt` minus one).
    """
    if num_classes not in _FILES:
        return None
    folder = resources.files("tsm_jax.weights") / "labels"
    return (folder / _FILES[num_classes]).read_text(encoding="utf-8").splitlines()


def labels_or_numbers(num_classes: int) -> list[str]:
    """`labels_for`, or else `class 0`, `class 1` and so on."""
    return labels_for(num_classes) or [f"class {index}" for index in range(num_classes)]


def read_labels(path: str | os.PathLike[str], num_classes: int | None = None) -> list[str]:
    """Reads one class name a line, line 1 being label 0; any number but 0 if none is given.

    Raises:
        UserError: the file cannot be read, or `check_labels` refuses its lines.
    """
    names = [line.strip() for line in read_text(path, "the labels").splitlines()]
    if num_classes is None and not names:
        raise UserError(f"{path}: has no labels; give one class name a line")
    check_labels(names, len(names) if num_classes is None else num_classes, f"{path}: line")
    return names


def check_labels(names: Sequence[str], num_classes: int, place: str) -> None:
    """Raises a UserError unless every class has one name of its own that fits on a line.

    `place` is a file and what its entries are called, for messages: `labels.txt: line`.
    """
    source, entry = place.rsplit(" ", 1)
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        where = f"{place} {number}"
        if not isinstance(name, str):
            raise UserError(f"{where} is {shown(name)}; a class name must be text")
        if not name.strip():
            raise UserError(f"{where} is empty; give one class name a line")
        if name != name.strip() or any(map(_is_control, name)):
            raise UserError(
                f"{where} is {shown(name)}; take out control characters and spaces around it"
            )
        if name in first:
            raise UserError(
                f"{where} repeats {shown(name)} of {entry} {first[name]};"
                " every class needs a name of its own"
            )
        first[name] = number
    if len(names) != num_classes:
        raise UserError(
            f"{source} has {len(names)} labels, but the model has {num_classes}"
            " classes; give one name a line, in label order"
        )


def _is_control(character: str) -> bool:
    """Also line breaks and surrogates, which no file of lines can hold; a tab is harmless."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character != "\t"
