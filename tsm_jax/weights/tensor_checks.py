"""What somebody else's tensors must be before they become ours: the expected ones, and sound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from tsm_jax.errors import UserError
from tsm_jax.models.architecture import HEAD, Architecture

HWIO = (2, 3, 1, 0)  # axes of a kernel that is OIHW, as in PyTorch and Paddle
OIHW = (3, 2, 0, 1)  # axes of one of ours

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_SHOWN = 5


def network_shapes(
    backbone: str, width: int, num_classes: int | None, num_segments: int = 8
) -> dict[str, tuple[int, ...]]:
    """Shapes by our names, of the network itself; without a classifier if it has no classes.

    Raises:
        UserError: there is no such network.
    """
    shapes = dict(_with_one_class(backbone, width, num_segments))
    for name in [name for name in shapes if name.startswith(HEAD)]:
        *features, _ = shapes.pop(name)
        if num_classes is not None:
            shapes[name] = (*features, num_classes)
    return shapes


@lru_cache(maxsize=16)
def _with_one_class(backbone: str, width: int, num_segments: int) -> dict[str, tuple[int, ...]]:
    from tsm_jax.models.network import build_network  # late: it brings in jax

    network = build_network(Architecture(backbone, 1, num_segments, width), "float32")
    return {**network.param_shapes, **network.batch_stat_shapes}


def check_shift(
    architecture: Architecture, whose: str, *, shift: str, shift_fraction: str, shift_every: int
) -> None:
    """Raises a UserError unless networks that shift this way answer the same with its weights."""
    is_eighth = architecture.num_segments == 8  # whichever of the two fractions
    is_theirs = is_eighth or architecture.shift_fraction == shift_fraction
    if not is_theirs or (architecture.shift, architecture.shift_every) != (shift, shift_every):
        raise UserError(
            f"{whose} shifts {shift}, by {shift_fraction}, in every"
            f" {'second ' if shift_every == 2 else ''}block; this model has"
            f" shift={architecture.shift}, shift_fraction={architecture.shift_fraction},"
            f" shift_every={architecture.shift_every}: its weights would answer something else"
            " there"
        )


def check_fit(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any], what: str) -> None:
    """Exactly the expected names and shapes, and only floating point tensors.

    Args:
        expected: shapes by name.
        what: what they are otherwise, for the message: "not a TSM ResNet".

    Raises:
        UserError: with what is missing and what is unexpected.
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
    """Finite values, and no negative variances; `names` are those to show for ours.

    Raises:
        UserError: otherwise.
    """
    bad = [names[ours] for ours, value in weights.items() if not np.isfinite(value).all()]
    if bad:
        raise UserError(f"{len(bad)} tensors hold values that are not finite: {listed(bad)}")
    bad = [
        names[ours] for ours, value in weights.items() if ours.endswith(".var") and value.min() < 0
    ]
    if bad:
        raise UserError(f"{len(bad)} running variances are negative: {listed(bad)}")


def float32(value: np.ndarray) -> np.ndarray:
    """Contiguous; uint16 is the bfloat16 of Paddle."""
    if value.dtype == np.uint16:  # the upper half of a float32
        return (value.astype(np.uint32, order="C") << 16).view(np.float32)
    with np.errstate(over="ignore"):  # an overflow to infinity is reported with its name
        return np.asarray(value, np.float32, order="C")


def to_oihw(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a tensor of ours has where kernels are OIHW."""
    return tuple(shape[axis] for axis in OIHW) if len(shape) == 4 else shape


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
