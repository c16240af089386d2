"""Minimum cost of a step: operations and bytes of its convolutions and matrix products.

They are counted in the traced program, before compilation. The figures are therefore the same on
all hardware, and whatever a compiler adds shows as a smaller share of the roofline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import jax


class Cost(NamedTuple):
    """Cost of one call.

    Attributes:
        operations: number of multiplications and additions (two for each pair).
        bytes: bytes of the operands and results, each moved once. Operations that a perfect
            compiler fuses (normalisation, batch norm, ReLU, shift, sums) are not included.
    """

    operations: float
    bytes: float


def count(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Counts the cost of `function(*arguments)` without running it.

    Args:
        function: any function of arrays, including a result of `jax.jit` with compiler options.
        arguments: arrays or `jax.ShapeDtypeStruct`.
    """
    jitted: Any = function if hasattr(function, "trace") else jax.jit(function)
    return _count(jitted.trace(*arguments).jaxpr.jaxpr)


def _count(jaxpr: Any) -> Cost:
    operations = moved = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in _COUNTED:
            operations += _COUNTED[name](equation)
            moved += _moved(equation)
        elif name == "cond":  # one of the branches runs
            platforms, branches = params["branches_platforms"] or (), params["branches"]
            if None in platforms:  # branches for one kind of device cost more operations
                branches = branches[platforms.index(None) :][:1]
            cost = max(_count(branch.jaxpr) for branch in branches)
            operations += cost.operations
            moved += cost.bytes
        else:
            times = params.get("length", 1) if name == "scan" else 1
            for cost in map(_count, _inner(params)):
                operations += times * cost.operations
                moved += times * cost.bytes
    return Cost(operations, moved)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """Yields the programs that an operation calls (jit, scan, remat, ...)."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            program = getattr(item, "jaxpr", item)  # unwraps a ClosedJaxpr
            if hasattr(program, "eqns"):
                yield program


def _dot_operations(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2.0 * prod(equation.outvars[0].aval.shape) * prod(lhs[axis] for axis in contracted)


def _conv_operations(equation: Any) -> float:
    """Counts multiplications by zeros of the padding, but not by zeros of a dilation."""
    numbers, params = equation.params["dimension_numbers"], equation.params
    kernel, result = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    per_value = prod(kernel) / kernel[numbers.rhs_spec[0]]
    skipped = prod(params["lhs_dilation"])
    return 2.0 * prod(result) * per_value / skipped / params["batch_group_count"]


def _moved(equation: Any) -> float:
    arrays = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    return float(sum(prod(array.shape) * array.dtype.itemsize for array in arrays))


_COUNTED = {"dot_general": _dot_operations, "conv_general_dilated": _conv_operations}
