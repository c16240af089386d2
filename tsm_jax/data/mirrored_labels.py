"""Which class a mirrored clip is of, by the names of the classes: `left` becomes `right`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tsm_jax.errors import UserError
from tsm_jax.terminal import printable

_PAIRS = (("left", "right"), ("clockwise", "counterclockwise"), ("左", "右"), ("顺时针", "逆时针"))
_OPPOSITE = {a: b for one, other in _PAIRS for a, b in ((one, other), (other, one))}

# Whole words, `leftwards` and `left-handed` among them, but not `leftover` or `upright`; nor words
# that are no direction: Something-Something has `pulling it right out`.
_DIRECTION = re.compile(
    r"\b(?:left(?! (?:over|behind)\b)|right(?! (?:out|away)\b))(?=(?:wards?|hand|handed|most)?\b)"
    r"|\b(?:counter)?clockwise\b|左|右|顺时针|逆时针"
)


def mirrored_labels(names: Sequence[str]) -> tuple[int, ...]:
    """For each class the one that a mirrored clip of it is of; most often itself.

    Two classes are each other's mirror image if their names differ in left and right, or in
    clockwise and counterclockwise (or anticlockwise), and in nothing but those, case, blanks and
    punctuation.

    Raises:
        UserError: a class that names a direction has no such partner, or two.
    """
    own = [_comparable(name) for name in names]
    labels = {name: label for label, name in enumerate(own) if _mirrored(name) != name}
    mirrored = list(range(len(own)))
    for label, name in enumerate(own):
        if (opposite := _mirrored(name)) == name:
            continue
        why = ""
        if opposite not in labels:
            why = f"'{names[label]}' has no class '{opposite}'"
        elif labels[name] != label:
            why = f"'{names[label]}' and '{names[labels[name]]}' are the same direction"
        if why:
            raise UserError(
                f"the label of a mirrored clip is not known, as {printable(why)}: set"
                " --config.data.flip=False, or --config.data.flip_labels=keep if left and right"
                " make no difference there"
            )
        mirrored[label] = labels[opposite]
    return tuple(mirrored)


def with_direction(names: Sequence[str]) -> list[str]:
    """Those names that a mirrored clip makes wrong."""
    return [name for name in names if _mirrored(_comparable(name)) != _comparable(name)]


def _comparable(name: str) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = re.sub(r"[\W_]+", " ", words).strip()
    return re.sub(r"\b(?:counter|anti) ?clockwise\b", "counterclockwise", words)


def _mirrored(words: str) -> str:
    return _DIRECTION.sub(lambda match: _OPPOSITE[match[0]], words)
