"""Class names in label order: those of Kinetics-400 and UCF-101, or a user's own file."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from tsm_jax.errors import UserError

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
    """Reads one class name a line, line 1 being label 0.

    Args:
        path: of the file.
        num_classes: how many there must be; None for any number but 0.

    Raises:
        UserError: the file is missing or not UTF-8 text, a line is empty, a name comes twice, or
            the number of lines is not `num_classes`.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8; save the labels as UTF-8") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: the labels cannot be read: {reason}") from None
    names = [line.strip() for line in lines]
    _check_names(path, names)
    if num_classes is None and not names:
        raise UserError(f"{path}: has no labels; give one class name a line")
    if num_classes is not None and len(names) != num_classes:
        raise UserError(
            f"{path}: has {len(names)} labels, but the model has {num_classes} classes;"
            " give one name a line, in label order"
        )
    return names


def _check_names(path: Path, names: list[str]) -> None:
    first_line: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{path}: line {number} is empty; give one class name a line")
        if name in first_line:
            raise UserError(
                f"{path}: line {number} repeats {name!r} of line {first_line[name]};"
                " every class needs a name of its own"
            )
        first_line[name] = number
