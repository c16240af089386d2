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
    """Counts `function(*arguments)` without running it; arguments may be `jax.ShapeDtypeStruct`."""
    jaxpr = jax.make_jaxpr(function)(*arguments)
    return _sum(_count_jaxpr(jaxpr.jaxpr))


def _count_jaxpr(jaxpr: Any) -> Iterator[Cost]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield Cost(_dot_operations(equation), _moved(equation))
        elif equation.primitive.name == "conv_general_dilated":
            yield Cost(_conv_operations(equation), _moved(equation))
        else:
            times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
            for inner in _inner(equation.params):
                cost = _sum(_count_jaxpr(inner))
                yield Cost(times * cost.operations, times * cost.bytes)


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


def _sum(costs: Iterator[Cost]) -> Cost:
    operations = total = 0.0
    for cost in costs:
        operations += cost.operations
        total += cost.bytes
    return Cost(operations, total)
