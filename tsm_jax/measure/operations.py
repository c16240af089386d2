"""What a step costs at the least: operations and bytes of its convolutions and matrix products.

Counted in the program as it is traced, before any compiler: so the figures are the same on all
hardware, and whatever else a compiler adds shows as a smaller share of the roofline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import jax


class Cost(NamedTuple):
    """Of one call.

    Attributes:
        operations: multiplications and additions (two for each pair).
        bytes: of the operands and results, each moved once. What a perfect compiler fuses
            (normalising, batch norm, ReLU, shift, sums) is not in it.
    """

    operations: float
    bytes: float


def count(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Counts `function(*arguments)` without running it; arguments may be `jax.ShapeDtypeStruct`.

    Args:
        function: any function of arrays; one of `jax.jit` with compiler options, too.
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
        elif name == "cond":  # one of them runs
            platforms, branches = params["branches_platforms"] or (), params["branches"]
            if None in platforms:  # what is written for one kind of device costs more operations
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
    """The programs that an operation calls (jit, scan, remat, ...)."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            program = getattr(item, "jaxpr", item)  # of a closed one
            if hasattr(program, "eqns"):
                yield program


def _dot_operations(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2.0 * prod(equation.outvars[0].aval.shape) * prod(lhs[axis] for axis in contracted)


def _conv_operations(equation: Any) -> float:
    """Multiplications by the zeros of padding count, those by the zeros of a dilation do not."""
    numbers, params = equation.params["dimension_numbers"], equation.params
    kernel, result = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    per_value = prod(kernel) / kernel[numbers.rhs_spec[0]]
    skipped = prod(params["lhs_dilation"])
    return 2.0 * prod(result) * per_value / skipped / params["batch_group_count"]


def _moved(equation: Any) -> float:
    arrays = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    return float(sum(prod(array.shape) * array.dtype.itemsize for array in arrays))


_COUNTED = {"dot_general": _dot_operations, "conv_general_dilated": _conv_operations}
