"""Class names in label order: those that come with the package, or a user's own file."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from importlib import resources

from tsm_jax.errors import UserError
from tsm_jax.files import read_text, shown

# Something-Something's names may not be passed on. Its two versions have 174 classes each, in other
# orders: a number of classes is only taken for a data set where nothing else has it.
_BY_NUMBER = {400: "kinetics400", 101: "ucf101"}
# MIT numbers Jester's classes in alphabetical order, mmaction2 in that of the data set's own file.
_PACKAGED = ("kinetics400", "ucf101", "jester", "jester_mmaction2")


def labels_for(num_classes: int) -> list[str] | None:
    """The names that come with the package for a head of this size, or None.

    400 is taken for Kinetics-400 and 101 for UCF-101. PaddleVideo, MIT and mmaction2 number the
    classes alike (UCF-101: `classInd.txt` minus one).
    """
    name = _BY_NUMBER.get(num_classes)
    return dataset_labels(name) if name else None


def dataset_labels(name: str) -> list[str] | None:
    """The names of a data set, or None if they do not come with the package."""
    if name not in _PACKAGED:
        return None
    folder = resources.files("tsm_jax.weights") / "labels"
    return (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def numbered(num_classes: int) -> list[str]:
    """`class 0`, `class 1` and so on: stand-ins where no names are known."""
    return [f"class {index}" for index in range(num_classes)]


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


def check_same_order(names: Sequence[str], source: str, others: Sequence[str], other: str) -> None:
    """Raises a UserError if a name that both lists have has another number in each.

    Only letters and digits count. Names that only one list has may be other spellings or another
    language, and `class 5` is no name. `source` and `other` say where the lists are from.
    """
    numbers = {_key(name): number for number, name in enumerate(names)}
    for number, name in enumerate(others):
        theirs = numbers.get(_key(name), number)
        if theirs != number and not re.fullmatch(r"class \d+", name):
            same = sorted(numbers) == sorted(map(_key, others))
            order = "the same classes in another order" if same else "some of the same classes"
            raise UserError(
                f"{source} and {other} have {order}: {shown(name)} is number {theirs} of the one"
                f" and {number} of the other, so every answer would get a wrong name; use weights"
                " and lists that number the classes alike"
            )


def _key(name: str) -> str:
    """`playing_guitar` and `Playing guitar` are one class."""
    return re.sub(r"[\W_]", "", name.casefold())


def _is_control(character: str) -> bool:
    """Also line breaks and surrogates, which no file of lines can hold; a tab is harmless."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character != "\t"
