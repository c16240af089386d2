"""Checks the tensors of other projects: names, shapes, dtypes and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from tsm_jax.errors import UserError
from tsm_jax.models.architecture import HEAD, Architecture

HWIO = (2, 3, 1, 0)  # transposes OIHW kernels of PyTorch and Paddle to ours
OIHW = (3, 2, 0, 1)  # the inverse

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_SHOWN = 5


def network_shapes(
    backbone: str, width: int, num_classes: int | None, num_segments: int = 8
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network's tensors by our names.

    Args:
        num_classes: None for a network without a classifier.

    Raises:
        UserError: the network does not exist.
    """
    shapes = dict(_with_one_class(backbone, width, num_segments))
    for name in [name for name in shapes if name.startswith(HEAD)]:
        *features, _ = shapes.pop(name)
        if num_classes is not None:
            shapes[name] = (*features, num_classes)
    return shapes


@lru_cache(maxsize=16)
def _with_one_class(backbone: str, width: int, num_segments: int) -> dict[str, tuple[int, ...]]:
    from tsm_jax.models.network import build_network  # imported late because it imports jax

    network = build_network(Architecture(backbone, 1, num_segments, width), "float32")
    return {**network.param_shapes, **network.batch_stat_shapes}


def check_shift(
    architecture: Architecture, whose: str, *, shift: str, shift_fraction: str, shift_every: int
) -> None:
    """Raises a UserError unless networks with this shift compute the same as `architecture`."""
    is_eighth = architecture.num_segments == 8  # both fractions are the same
    is_theirs = is_eighth or architecture.shift_fraction == shift_fraction
    if not is_theirs or (architecture.shift, architecture.shift_every) != (shift, shift_every):
        raise UserError(
            f"{whose} shifts {shift}, by {shift_fraction}, in every"
            f" {'second ' if shift_every == 2 else ''}block; this model has"
            f" shift={architecture.shift}, shift_fraction={architecture.shift_fraction},"
            f" shift_every={architecture.shift_every}: its weights would give different results"
            " there"
        )


def check_fit(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any], what: str) -> None:
    """Checks that `found` has exactly the expected names and shapes, all floating point.

    Args:
        expected: shapes by name.
        what: beginning of the error message: "not a TSM ResNet".

    Raises:
        UserError: tensors are missing, unexpected, or have a wrong shape or dtype.
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
        raise UserError(f"{what}: {', '.join(problems)}; check that it is the right file")


def check_sound(weights: Mapping[str, np.ndarray], names: Mapping[str, str]) -> None:
    """Checks that all values are finite and no running variance is negative.

    Args:
        names: by our names, the names to show in messages.

    Raises:
        UserError: the check failed.
    """
    bad = [names[ours] for ours, value in weights.items() if not np.isfinite(value).all()]
    if bad:
        raise UserError(f"{len(bad)} tensors contain values that are not finite: {listed(bad)}")
    bad = [
        names[ours] for ours, value in weights.items() if ours.endswith(".var") and value.min() < 0
    ]
    if bad:
        raise UserError(f"{len(bad)} running variances are negative: {listed(bad)}")


def float32(value: np.ndarray) -> np.ndarray:
    """Converts to contiguous float32; uint16 is interpreted as Paddle's bfloat16."""
    if value.dtype == np.uint16:  # the upper half of a float32
        return (value.astype(np.uint32, order="C") << 16).view(np.float32)
    with np.errstate(over="ignore"):  # an overflow to infinity is reported with its name
        return np.asarray(value, np.float32, order="C")


def to_oihw(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of our tensor in a layout with OIHW kernels."""
    return tuple(shape[axis] for axis in OIHW) if len(shape) == 4 else shape


def shape_of(value: Any) -> tuple[int, ...]:
    """Returns the shape of a tensor, or an empty tuple for any other value of a file."""
    return value.shape if isinstance(value, np.ndarray) else ()


def dtype_name(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    return "bfloat16" if value.dtype == np.uint16 else value.dtype.name


def listed(names: Iterable[str]) -> str:
    """Formats the first few names on one line, escaped because they come from a file."""
    names = list(names)
    shown = [ascii(name)[1:-1][:120] for name in names[:_SHOWN]]
    more = [f"and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join(shown + more)


def _described(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    return f"{value.dtype} {value.shape}"
