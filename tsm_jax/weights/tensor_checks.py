"""What somebody else's tensors must be before they become ours: the expected ones, and sound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_SHOWN = 5


class Unfit(Exception):
    """Why tensors are not taken, as half a line."""


def check_fit(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any], what: str) -> None:
    """Exactly the expected names and shapes, and only floating point tensors.

    Args:
        expected: shapes by name.
        what: the network that they are of, for the message: "a TSM ResNet".

    Raises:
        Unfit: with what is missing and what is unexpected.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    both = [(name, shape) for name, shape in expected.items() if name in found]
    others = [
        f"{name} is {_described(found[name])}, not {shape}"
        for name, shape in both
        if shape_of(found[name]) != shape or dtype_name(found[name]) not in _FLOATS
    ]
    problems = [
        f"{len(names)} {kind} ({listed(names)})"
        for kind, names in [("missing", missing), ("unexpected", unexpected), ("wrong", others)]
        if names
    ]
    if problems:
        raise Unfit(f"not {what}: {', '.join(problems)}; check that it is the right file")


def check_sound(weights: Mapping[str, np.ndarray], names: Mapping[str, str]) -> None:
    """Finite values, and no negative variances; `names` are those to show for ours.

    Raises:
        Unfit: otherwise.
    """
    bad = [names[ours] for ours, value in weights.items() if not np.isfinite(value).all()]
    if bad:
        raise Unfit(f"{len(bad)} tensors hold values that are not finite: {listed(bad)}")
    bad = [
        names[ours] for ours, value in weights.items() if ours.endswith(".var") and value.min() < 0
    ]
    if bad:
        raise Unfit(f"{len(bad)} running variances are negative: {listed(bad)}")


def float32(value: np.ndarray) -> np.ndarray:
    """Contiguous; uint16 is the bfloat16 of Paddle."""
    if value.dtype == np.uint16:  # the upper half of a float32
        return (value.astype(np.uint32, order="C") << 16).view(np.float32)
    with np.errstate(over="ignore"):  # an overflow to infinity is reported with its name
        return np.asarray(value, np.float32, order="C")


def shape_of(value: Any) -> tuple[int, ...]:
    """Of a tensor; empty for anything else that a file may hold."""
    return value.shape if isinstance(value, np.ndarray) else ()


def dtype_name(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    return "bfloat16" if value.dtype == np.uint16 else value.dtype.name


def listed(names: Iterable[str]) -> str:
    """The first few, on one line whatever a file calls its tensors."""
    names = list(names)
    shown = [ascii(name)[1:-1][:120] for name in names[:_SHOWN]]
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join(shown + more)


def _described(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    return f"{value.dtype} {value.shape}"
