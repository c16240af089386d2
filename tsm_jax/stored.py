"""Dataclasses that are stored as JSON: the choices and ranges of their fields, checked once.

A field says what it may be by its metadata: `field(metadata=one_of((1, 2)))`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from tsm_jax.errors import UserError
from tsm_jax.terminal import printable

_Stored = TypeVar("_Stored")


def one_of(choices: Collection[Any]) -> dict[str, Any]:
    """Metadata of a field that is one of a few values."""
    return {"choices": choices}


def between(low: int, high: int) -> dict[str, Any]:
    """Metadata of a whole number, the ends included."""
    return {"range": (low, high)}


def check_fields(values: Any) -> None:
    """Raises a UserError unless every field of a dataclass is what its metadata says.

    `True` is not a whole number here, nor is `8.0`.
    """
    for item in fields(values):
        value = getattr(values, item.name)
        wanted = _wanted(value, **item.metadata)
        if wanted:
            name = f"{type(values).__name__.lower()}.{item.name}"
            raise UserError(f"{name} is {shown(value)}: it must be {wanted}")


def from_json(kind: type[_Stored], values: Any) -> _Stored:
    """A dataclass from what `json.load` gave, which must have exactly its fields.

    Raises:
        UserError: a key is missing, unknown or has a wrong value.
    """
    part = kind.__name__.lower()
    if not isinstance(values, dict):
        raise UserError(f"{part} is {shown(values)}: it must be an object")
    names = {item.name for item in fields(kind)}  # pyright: ignore[reportArgumentType]
    for problem, keys in (("missing", names - values.keys()), ("unknown", values.keys() - names)):
        if keys:
            raise UserError(f"{part}.{printable(min(keys))} is {problem}")
    return kind(**values)


def upgraded(
    values: dict[str, Any], version: Any, upgrades: Sequence[Callable[[Any], Any]], what: str
) -> dict[str, Any]:
    """Stored values of whatever version as the newest one has them.

    Args:
        values: as they were stored.
        version: the number that was stored with them, from 1.
        upgrades: from version 1 to 2, from 2 to 3 and so on: functions of a dictionary that return
            a new one. A version's own values are written there: a default may change later.
        what: `the recipe`, for messages.

    Raises:
        UserError: it is no version, or one that a newer tsm_jax has written.
    """
    newest = len(upgrades) + 1
    if type(version) is not int or version < 1:
        raise UserError(f"{what} has the version {shown(version)}, which is not a version")
    if version > newest:
        raise UserError(
            f"{what} is of version {version}, this tsm_jax reads up to version {newest}:"
            " use a newer tsm_jax"
        )
    for upgrade in upgrades[version - 1 :]:
        values = upgrade(values)
    return values


def shown(value: Any) -> str:
    """A value for a message: short, on one line."""
    return printable(reprlib.repr(value))


def _wanted(
    value: Any, *, choices: Collection[Any] = (), range: tuple[int, int] | None = None
) -> str:
    """What a value should have been; empty if it is that."""
    if choices and not any(type(value) is type(choice) and value == choice for choice in choices):
        return f"one of {', '.join(map(str, choices))}"
    if range and not (type(value) is int and range[0] <= value <= range[1]):
        return f"a whole number from {range[0]} to {range[1]}"
    return ""
