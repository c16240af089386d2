"""Class names in label order, from the package or from a user's file."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from importlib import resources

from tsm_jax.errors import UserError
from tsm_jax.files import read_text, shown

# The licence of Something-Something does not allow redistributing its names. Its two versions have
# 174 classes each, in different orders: only numbers that identify a data set are listed here.
_BY_NUMBER = {400: "kinetics400", 101: "ucf101"}
# MIT numbers Jester's classes alphabetically, mmaction2 in the order of the data set's own file.
_PACKAGED = ("kinetics400", "ucf101", "jester", "jester_mmaction2")


def labels_for(num_classes: int) -> list[str] | None:
    """Returns the packaged names for a classifier of this size, or None.

    400 means Kinetics-400 and 101 means UCF-101. PaddleVideo, MIT and mmaction2 number these
    classes identically (UCF-101: `classInd.txt` minus one).
    """
    name = _BY_NUMBER.get(num_classes)
    return dataset_labels(name) if name else None


def dataset_labels(name: str) -> list[str] | None:
    """Returns the names of a data set, or None if they are not part of the package."""
    if name not in _PACKAGED:
        return None
    folder = resources.files("tsm_jax.weights") / "labels"
    return (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def numbered(num_classes: int) -> list[str]:
    """Returns the placeholder names `class 0`, `class 1` and so on."""
    return [f"class {index}" for index in range(num_classes)]


def read_labels(path: str | os.PathLike[str], num_classes: int | None = None) -> list[str]:
    """Reads class names, one per line; line 1 is label 0.

    Args:
        num_classes: expected number of names; None allows any number except 0.

    Raises:
        UserError: the file cannot be read, or `check_labels` refuses its lines.
    """
    names = [line.strip() for line in read_text(path, "the labels").splitlines()]
    if num_classes is None and not names:
        raise UserError(f"{path}: has no labels; give one class name per line")
    check_labels(names, len(names) if num_classes is None else num_classes, f"{path}: line")
    return names


def check_labels(names: Sequence[str], num_classes: int, place: str) -> None:
    """Raises a UserError unless every class has a unique name that fits on one line.

    Args:
        place: the file and the word for its entries, for messages: "labels.txt: line".
    """
    source, entry = place.rsplit(" ", 1)
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        where = f"{place} {number}"
        if not isinstance(name, str):
            raise UserError(f"{where} is {shown(name)}; a class name must be text")
        if not name.strip():
            raise UserError(f"{where} is empty; give one class name per line")
        if name != name.strip() or any(map(_is_control, name)):
            raise UserError(
                f"{where} is {shown(name)}; remove control characters and surrounding spaces"
            )
        if name in first:
            raise UserError(
                f"{where} repeats {shown(name)} of {entry} {first[name]};"
                " every class needs a unique name"
            )
        first[name] = number
    if len(names) != num_classes:
        raise UserError(
            f"{source} has {len(names)} labels, but the model has {num_classes}"
            " classes; give one name per line, in label order"
        )


def check_same_order(names: Sequence[str], source: str, others: Sequence[str], other: str) -> None:
    """Raises a UserError if a name in both lists has different numbers.

    Names are compared by letters and digits only. Names in only one list are ignored, because they
    may be another spelling or language, and so are placeholders such as `class 5`. `source` and
    `other` name the origins of the lists in messages.
    """
    numbers = {_key(name): number for number, name in enumerate(names)}
    for number, name in enumerate(others):
        theirs = numbers.get(_key(name), number)
        if theirs != number and not re.fullmatch(r"class \d+", name):
            same = sorted(numbers) == sorted(map(_key, others))
            order = "the same classes in another order" if same else "some of the same classes"
            raise UserError(
                f"{source} and {other} have {order}: {shown(name)} is number {theirs} in the former"
                f" and {number} in the latter, so answers would get wrong names; use weights and"
                " lists that number the classes identically"
            )


def _key(name: str) -> str:
    """Normalises a name: `playing_guitar` and `Playing guitar` are the same class."""
    return re.sub(r"[\W_]", "", name.casefold())


def _is_control(character: str) -> bool:
    """Includes line breaks and surrogates, which a text file of lines cannot hold, but not tabs."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character != "\t"
