"""Dataclasses that are stored as JSON: the choices and ranges of their fields, checked once.

A field says what it may be by its metadata: `field(metadata=one_of(1, 2))`.
"""

from __future__ import annotations

import reprlib
from dataclasses import fields
from typing import Any, TypeVar

from tsm_jax.errors import UserError
from tsm_jax.terminal import printable

_Stored = TypeVar("_Stored")


def one_of(*choices: Any) -> dict[str, Any]:
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


def shown(value: Any) -> str:
    """A value for a message: short, on one line."""
    return printable(reprlib.repr(value))


def _wanted(value: Any, *, choices: tuple = (), range: tuple[int, int] | None = None) -> str:
    """What a value should have been; empty if it is that."""
    if choices and not any(type(value) is type(choice) and value == choice for choice in choices):
        return f"one of {', '.join(map(str, choices))}"
    if range and not (type(value) is int and range[0] <= value <= range[1]):
        return f"a whole number from {range[0]} to {range[1]}"
    return ""
