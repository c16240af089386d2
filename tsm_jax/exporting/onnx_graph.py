"""Translates a program to an ONNX graph.

    video     uint8 [N, T, S, S, 3]        as in the program; any N
    logits    float32 [N, K]
    features  float32 [N, T, C, h, w]      images are NCHW in the graph

The graph of a stream takes `frame` instead of `video`, and its states are images,
`[1, fold, h, w]`.

Each primitive of the traced program is replaced by equivalent nodes. The supported primitives are
listed at the end of this file; any other is refused with an error that names it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from onnx import helper  # pyright: ignore[reportMissingImports]

from tsm_jax.exporting.onnx_writer import Operand, Size, Tensor, Writer, refuse
from tsm_jax.exporting.program import Program


def build_onnx(program: Program) -> onnx.ModelProto:
    """Returns the graph of a program, checked by `onnx.checker`.

    Raises:
        UserError: the program contains a primitive for which there is no rule.
    """
    writer = Writer()
    described, inputs = [], []
    for name, aval in program.inputs.items():
        pixels = aval.dtype == np.uint8
        tensor = Tensor(name, _sizes(aval), channels_first=not pixels)
        kind = helper.np_dtype_to_tensor_dtype(aval.dtype)
        shape = tensor.stored(tensor.shape)
        described.append(helper.make_tensor_value_info(name, kind, shape))
        # Transpose inputs at once, while a pixel value is a single byte.
        inputs.append(writer.lay(tensor, channels_first=True))
    jaxpr = jax.make_jaxpr(program)(*program.inputs.values())
    results = zip(_run(writer, jaxpr, inputs), jaxpr.out_avals, strict=True)
    outputs = [
        writer.lay(writer.expand(result, _sizes(aval)), channels_first=True)
        for result, aval in results
    ]
    return writer.model(described, dict(zip(program.outputs, outputs, strict=True)))


def _sizes(aval: Any) -> tuple[Size, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in aval.shape)


def _run(writer: Writer, jaxpr: ClosedJaxpr, inputs: Sequence[Operand]) -> list[Any]:
    values: dict[Any, Operand] = {}
    equations, results = jaxpr.jaxpr.eqns, jaxpr.jaxpr.outvars
    readers = Counter(
        atom
        for atoms in (*(equation.invars for equation in equations), results)
        for atom in atoms
        if not isinstance(atom, Literal)
    )

    def write(variables: Sequence[Any], operands: Iterable[Operand]) -> None:
        for variable, operand in zip(variables, operands, strict=True):
            values[variable] = operand
            if readers[variable] > 1:
                writer.keep(operand)

    def read(atom: Any) -> Operand:
        return np.asarray(atom.val, _dtype(atom)) if isinstance(atom, Literal) else values[atom]

    write(jaxpr.jaxpr.invars, inputs)
    write(jaxpr.jaxpr.constvars, map(np.asarray, jaxpr.consts))
    for equation in equations:
        operands = [read(atom) for atom in equation.invars]
        write(equation.outvars, _equation(writer, equation, operands))
    return [read(atom) for atom in results]


def _equation(writer: Writer, equation: JaxprEqn, operands: list[Any]) -> Sequence[Operand]:
    name = equation.primitive.name
    if name == "cond" and None in (platforms := equation.params["branches_platforms"] or ()):
        program = equation.params["branches"][platforms.index(None)]  # the default branch
        return _run(writer, program, operands[1:])
    if name == "jit" and equation.params["name"] == "leaky_relu":  # jax.nn.leaky_relu: one node
        return [_leaky_relu(writer, *operands)]
    if name in _CALLS:
        return _run(writer, equation.params[_CALLS[name]], operands)
    if name not in _BROADCASTING:
        shapes = [_sizes(atom.aval) for atom in equation.invars]
        operands = [writer.expand(x, shape) for x, shape in zip(operands, shapes, strict=True)]
    if name != "broadcast_in_dim" and all(isinstance(x, np.ndarray) for x in operands):
        if name in _BROADCASTING:
            operands = list(np.broadcast_arrays(*operands))
        results = jax.tree.map(np.asarray, equation.primitive.bind(*operands, **equation.params))
    elif name in _RULES:
        results = _RULES[name](writer, equation, *operands)
    else:
        raise refuse(f"there is no rule for {name!r}")
    return results if equation.primitive.multiple_results else [results]


def _require(equation: JaxprEqn, *conditions: bool) -> None:
    if not all(conditions):
        shapes = [_sizes(atom.aval) for atom in equation.invars]
        raise refuse(f"the rule for {equation.primitive.name!r} does not cover {shapes}")


def _dtype(atom: Any) -> np.dtype:
    return atom.aval.dtype


def _is_float32(equation: JaxprEqn) -> bool:
    return _dtype(equation.outvars[0]) == np.float32


# Rules. Constant operands are NumPy arrays.


def _elementwise(writer: Writer, equation: JaxprEqn, *operands: Any) -> Tensor:
    return writer.elementwise(_ELEMENTWISE[equation.primitive.name], *operands)


def _arithmetic(writer: Writer, equation: JaxprEqn, *operands: Any) -> Tensor:
    name = equation.primitive.name
    if isinstance(operands[0], np.ndarray) and name not in ("sub", "div"):
        operands = operands[::-1]
    x, y = operands
    if isinstance(y, np.ndarray) and _is_float32(equation):
        exact = y.astype(np.float64)
        match name:
            case "mul":
                return writer.scale(x, exact)
            case "div" if y.all():
                return writer.scale(x, 1 / exact)
            case "add" | "sub":
                return writer.offset(x, exact, _ELEMENTWISE[name])
            case "max" if y.size == 1:
                return writer.at_least(x, y.reshape(()))
            case "min" if y.size == 1:
                return writer.at_most(x, y.reshape(()))
    return writer.elementwise(_ELEMENTWISE[name], x, y)


def _clamp(writer: Writer, equation: JaxprEqn, low: Any, x: Any, high: Any) -> Tensor:
    return writer.elementwise("Min", writer.elementwise("Max", x, low), high)


def _select(writer: Writer, equation: JaxprEqn, condition: Any, *cases: Any) -> Tensor:
    _require(equation, len(cases) == 2, _dtype(equation.invars[0]) == np.bool_)
    return writer.elementwise("Where", condition, *reversed(cases))


def _convert(writer: Writer, equation: JaxprEqn, x: Any) -> Tensor:
    dtype = np.dtype(equation.params["new_dtype"])
    if dtype == _dtype(equation.invars[0]):  # changes only the promotion rule (weak type)
        return x
    _require(equation, dtype == np.float32 or dtype.kind in "biu")
    to = helper.np_dtype_to_tensor_dtype(dtype)
    return writer.node("Cast", [x], x.shape, x.channels_first, to=to)


def _broadcast(writer: Writer, equation: JaxprEqn, x: Any) -> Operand:
    """Changes only the rank; axes of length 1 are broadcast later, where it is necessary."""
    shape: list[Size] = [1] * len(equation.params["shape"])
    for axis, size in zip(equation.params["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = size
    return writer.reshape(x, shape)


def _reshape(writer: Writer, equation: JaxprEqn, x: Any) -> Operand:
    _require(
        equation, equation.params.get("new_sizes") is None or not equation.params["dimensions"]
    )
    return writer.reshape(x, _sizes(equation.outvars[0].aval))


def _slice(writer: Writer, equation: JaxprEqn, x: Any) -> Tensor:
    starts, stops = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or [1] * len(stops)
    parts = []
    for size, start, stop, step in zip(x.shape, starts, stops, steps, strict=True):
        whole = (start, str(stop), step) == (0, str(size), 1)
        _require(equation, whole or isinstance(size, int))
        parts.append(None if whole else range(start, stop, step))
    return writer.slice(x, parts)


def _split(writer: Writer, equation: JaxprEqn, x: Any) -> list[Tensor]:
    axis, ends = equation.params["axis"], np.cumsum([0, *equation.params["sizes"]]).tolist()
    before, after = [None] * axis, [None] * (len(x.shape) - axis - 1)
    return [writer.slice(x, [*before, range(*part), *after]) for part in pairwise(ends)]


def _pad(writer: Writer, equation: JaxprEqn, x: Any, value: Any) -> Tensor:
    config = equation.params["padding_config"]
    sizes = zip(x.shape, config, strict=True)
    fixed = [isinstance(size, int) or ends == (0, 0, 0) for size, ends in sizes]
    _require(equation, isinstance(value, np.ndarray), all(fixed))
    _require(equation, not any(inside for _, _, inside in config))
    return writer.pad(x, [(low, high) for low, high, _ in config], value)


def _concatenate(writer: Writer, equation: JaxprEqn, *parts: Any) -> Operand:
    shape = _sizes(equation.outvars[0].aval)
    return writer.concatenate(parts, equation.params["dimension"], shape)


def _reduce_max(writer: Writer, equation: JaxprEqn, x: Any) -> Tensor:
    return writer.reduce("ReduceMax", x, equation.params["axes"])


def _reduce_sum(writer: Writer, equation: JaxprEqn, x: Any) -> Tensor:
    """Writes a sum as mean times count, because a division may follow that cancels the factor."""
    axes = equation.params["axes"]
    sizes = [x.shape[axis] for axis in axes]
    _require(equation, _is_float32(equation), all(isinstance(size, int) for size in sizes))
    return writer.scale(writer.reduce("ReduceMean", x, axes), np.array(math.prod(sizes)))


def _pool(writer: Writer, equation: JaxprEqn, x: Any) -> Tensor:
    """Pools windows of rows and columns; writes a sum like `_reduce_sum` does."""
    of, shape = equation.params, _sizes(equation.outvars[0].aval)
    window, steps, padding = of["window_dimensions"], of["window_strides"], of["padding"]
    rest = {(window[i], steps[i], *padding[i]) for i in range(len(shape)) if i not in (1, 2)}
    _require(equation, _is_float32(equation), len(shape) == 4, rest == {(1, 1, 0, 0)})
    _require(equation, {*of["base_dilation"], *of["window_dilation"]} == {1})
    where = {"kernel_shape": window[1:3], "strides": steps[1:3]}
    where["pads"] = _pads(equation, padding[1:3])
    x = writer.lay(x, True)
    if equation.primitive.name == "reduce_window_max":
        return writer.node("MaxPool", [x], shape, True, **where)
    mean = writer.node("AveragePool", [x], shape, True, count_include_pad=1, **where)
    return writer.scale(mean, np.array(math.prod(window)))


def _pads(equation: JaxprEqn, padding: Sequence[tuple[int, int]]) -> list[int]:
    """Converts padding to ONNX's order: all starts, then all ends."""
    pads = [low for low, _ in padding] + [high for _, high in padding]
    _require(equation, min(pads) >= 0)
    return pads


def _conv(writer: Writer, equation: JaxprEqn, x: Any, kernel: Any) -> Tensor:
    of, layout = equation.params, equation.params["dimension_numbers"]
    _require(equation, _is_float32(equation), isinstance(kernel, np.ndarray))
    _require(equation, layout.lhs_spec == layout.out_spec == (0, 3, 1, 2))
    _require(equation, of["batch_group_count"] == 1, set(of["lhs_dilation"]) == {1})
    kernel = kernel.transpose(layout.rhs_spec)  # OIHW
    return writer.conv(
        x,
        kernel,
        _sizes(equation.outvars[0].aval),
        kernel_shape=kernel.shape[2:],
        strides=of["window_strides"],
        pads=_pads(equation, of["padding"]),
        dilations=of["rhs_dilation"],
        group=of["feature_group_count"],
    )


def _dot(writer: Writer, equation: JaxprEqn, x: Any, y: Any) -> Tensor:
    """Multiplies the last axis by a constant matrix."""
    (over_x, over_y), _ = equation.params["dimension_numbers"]
    constant = isinstance(y, np.ndarray) and y.ndim == 2
    _require(equation, _is_float32(equation), constant, over_x == (len(x.shape) - 1,))
    return writer.matrix(x, y if over_y == (0,) else y.T, _sizes(equation.outvars[0].aval))


def _leaky_relu(writer: Writer, x: Any, slope: Any = 0.01) -> Tensor:
    """The default slope is that of jax.nn."""
    return writer.node("LeakyRelu", [x], x.shape, x.channels_first, alpha=float(slope))


# Primitives that call a program, with the name of the parameter that holds it.
_CALLS = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}
_ELEMENTWISE = {
    **{"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min"},
    **{"exp": "Exp", "logistic": "Sigmoid", "tanh": "Tanh", "neg": "Neg"},
    **{"ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less"},
}
# Rules that accept operands that have not been broadcast yet.
_BROADCASTING: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("add", "sub", "mul", "div", "max", "min"), _arithmetic),
    "clamp": _clamp,
    "select_n": _select,
    "convert_element_type": _convert,
    "stop_gradient": lambda writer, equation, x: x,
    "platform_index": lambda writer, equation: np.int32(0),  # only used by `cond`
    "broadcast_in_dim": _broadcast,
}
_RULES: dict[str, Callable[..., Any]] = _BROADCASTING | {
    "reshape": _reshape,
    "squeeze": _reshape,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "concatenate": _concatenate,
    "reduce_max": _reduce_max,
    "reduce_sum": _reduce_sum,
    "reduce_window_max": _pool,
    "reduce_window_sum": _pool,
    "conv_general_dilated": _conv,
    "dot_general": _dot,
}
