"""Writes the nodes of an ONNX graph and manages the memory layout of its images.

Images are `[..., H, W, C]` in the program and `[..., C, H, W]` in the graph, the layout of its
convolutions. Each tensor records which layout it has and is transposed only where an operation
needs the other one.

Constants are merged into the preceding or following node: a factor into the kernel of a
convolution, an offset into a bias; a sum over 9 values times 1/9 becomes a mean. The merged node is
written as a new one, and nodes that are not used in the end are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]

from tsm_jax.errors import UserError

# Old enough for runtimes of 2022, new enough for all operators that are used here.
OPSET, IR_VERSION = 17, 8

# Length of an axis: an int, or a string such as `N` or `8*N` if it depends on the number of clips.
Size = Any


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph.

    Attributes:
        shape: shape in the axis order of the program; an axis that is yet to be broadcast has 1.
        channels_first: whether the memory layout is `[..., C, H, W]`.
    """

    name: str
    shape: tuple[Size, ...]
    channels_first: bool = False

    def stored(self, of_axes: Sequence[Any]) -> list[Any]:
        """Reorders one value per axis from program order to memory order."""
        return [of_axes[axis] for axis in order(len(self.shape), self.channels_first)]


Operand = Tensor | np.ndarray


def order(rank: int, channels_first: bool) -> list[int]:
    """Returns the axes of the program in memory order."""
    axes = list(range(rank))
    return [*axes[:-3], rank - 1, rank - 3, rank - 2] if channels_first else axes


def refuse(what: str) -> UserError:
    """Returns the error for an operation that the graph cannot express."""
    return UserError(f"the network cannot be written as ONNX: {what}; remove onnx from --formats")


class Writer:
    """Collects nodes. Each method writes the nodes of an operation and returns their result."""

    def __init__(self):
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        # By the name of a result: the operands that the operation had.
        self._scaled: dict[str, tuple[Tensor, np.ndarray]] = {}
        self._clipped: dict[str, tuple[Tensor, np.ndarray]] = {}
        self._sliced: dict[str, tuple[Tensor, list[range | None]]] = {}
        self._without_bias: dict[str, tuple[Any, ...]] = {}

    def node(
        self,
        kind: str,
        inputs: Sequence[Operand],
        shape: Sequence[Size],
        channels_first: bool = False,
        **attributes: Any,
    ) -> Tensor:
        """Writes a node; inputs are used in the layout that they have."""
        name = f"{kind.lower()}_{len(self._nodes)}"
        names = [x.name if isinstance(x, Tensor) else self._constant(x) for x in inputs]
        self._nodes.append(helper.make_node(kind, names, [name], name, **attributes))
        return Tensor(name, tuple(shape), channels_first)

    def _constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self._initializers)}"
        self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def lay(self, x: Operand, channels_first: bool) -> Operand:
        """Transposes a tensor to a layout, if it does not have it yet."""
        if len(x.shape) < 4:
            return x
        wanted = order(len(x.shape), channels_first)
        if isinstance(x, np.ndarray):
            return x.transpose(wanted)
        if x.channels_first == channels_first:
            return x
        permutation = [x.stored(range(len(x.shape))).index(axis) for axis in wanted]
        return self.node("Transpose", [x], x.shape, channels_first, perm=permutation)

    def expand(self, x: Operand, shape: Sequence[Size]) -> Operand:
        """Broadcasts along axes of length 1."""
        if x.shape == tuple(shape):
            return x
        sizes = [1 if size == have else size for size, have in zip(shape, x.shape, strict=True)]
        if any(isinstance(size, str) for size in sizes):
            raise refuse("it repeats a tensor for every clip")
        if isinstance(x, np.ndarray):
            return x * np.ones(sizes, x.dtype)
        target = np.array(x.stored(sizes), np.int64)
        return self.node("Expand", [x, target], shape, x.channels_first)

    def reshape(self, x: Operand, shape: Sequence[Size]) -> Operand:
        """Reshapes; the layout is kept channels-first if the last three axes do not change."""
        shape = tuple(shape)
        if x.shape == shape:
            return x
        if isinstance(x, np.ndarray):
            return x.reshape(shape)
        source, factor = self._scaled.get(x.name, (x, np.zeros(0)))
        if factor.size == 1 or (_of_channels(factor) and x.shape[-1] == shape[-1]):
            factor = factor.reshape(*[1] * (len(shape) - 1), -1)
            return self.scale(self.reshape(source, shape), factor)
        first = len(shape) >= 4 and x.channels_first and x.shape[-3:] == shape[-3:]
        if not first:
            x = x if x.shape[-3:-1] == (1, 1) else self.lay(x, False)
            first = len(shape) >= 4 and shape[-3:-1] == (1, 1)  # both layouts are the same
        if sum(isinstance(size, str) for size in shape) > 1:
            raise refuse(f"two axes of {shape} depend on the number of clips")
        target = [-1 if isinstance(size, str) else size for size in shape]
        target = np.array([target[axis] for axis in order(len(shape), first)], np.int64)
        return self.node("Reshape", [x, target], shape, first)

    def elementwise(self, kind: str, *operands: Operand) -> Tensor:
        """Applies an elementwise operation; axes of length 1 are broadcast."""
        rank = max(len(x.shape) for x in operands)
        first = any(isinstance(x, Tensor) and x.channels_first for x in operands)
        shapes = [x.shape for x in operands if len(x.shape) == rank]
        shape = [next((s for s in sizes if s != 1), 1) for sizes in zip(*shapes, strict=True)]
        return self.node(kind, [self.lay(x, first) for x in operands], shape, first)

    def scale(self, x: Any, factor: np.ndarray) -> Tensor:
        """Multiplies by a constant."""
        x, before = self._scaled.get(x.name, (x, np.ones(())))
        factor = np.asarray(before * factor)
        if np.allclose(factor, 1, rtol=1e-7, atol=0):
            return x
        result = self.elementwise("Mul", x, factor.astype(np.float32))
        if result.shape == x.shape:
            self._scaled[result.name] = x, factor
        return result

    def offset(self, x: Tensor, value: np.ndarray, kind: str) -> Tensor:
        """Adds (`Add`) or subtracts (`Sub`) a constant."""
        source, factor = self._scaled.get(x.name, (x, np.zeros(())))
        if factor.all():  # x * f + v = (x + v / f) * f
            return self.scale(self.offset(source, value / factor, kind), factor)
        value = value.astype(np.float32)
        linear = self._without_bias.get(x.name, ())
        if linear and _of_channels(value) and value.size in (1, x.shape[-1]):
            bias = np.broadcast_to(value.reshape(-1), x.shape[-1:])
            return self._linear(*linear, bias=bias if kind == "Add" else -bias)
        return self.elementwise(kind, x, value)

    def at_least(self, x: Tensor, low: np.ndarray) -> Tensor:
        """Takes the maximum of each element and a scalar."""
        kind, inputs = ("Relu", [x]) if low == 0 else ("Clip", [x, low])
        result = self.node(kind, inputs, x.shape, x.channels_first)
        self._clipped[result.name] = x, low
        return result

    def at_most(self, x: Tensor, high: np.ndarray) -> Tensor:
        """Takes the minimum of each element and a scalar."""
        x, low = self._clipped.get(x.name, (x, np.float32(-np.inf)))
        return self.node("Clip", [x, np.asarray(low), high], x.shape, x.channels_first)

    def conv(
        self, x: Operand, kernel: np.ndarray, shape: Sequence[Size], **attributes: Any
    ) -> Tensor:
        """Convolves images with a kernel in OIHW order."""
        if isinstance(x, Tensor):
            source, factor = self._scaled.get(x.name, (x, np.zeros(0)))
            if _of_channels(factor) and factor.size in (1, kernel.shape[1]):
                x, kernel = source, (kernel * factor.reshape(-1, 1, 1)).astype(np.float32)
        return self._linear("Conv", self.lay(x, True), kernel, shape, attributes)

    def matrix(self, x: Tensor, matrix: np.ndarray, shape: Sequence[Size]) -> Tensor:
        """Multiplies by a constant matrix `[C_in, C_out]`."""
        if x.channels_first and len(x.shape) == 4:
            x, strides = self._strided(x)
            kernel = matrix.T[:, :, None, None]
            return self.conv(x, kernel, shape, kernel_shape=(1, 1), strides=strides)
        kind = "Gemm" if len(x.shape) == 2 else "MatMul"
        return self._linear(kind, self.lay(x, False), matrix, shape, {})

    def _strided(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Returns the images of which `x` is every n-th pixel, and n for rows and columns."""
        source, taken = self._sliced.get(x.name, (x, [None] * 4))
        rows, columns = (1 if part is None else part.step for part in taken[1:3])
        _, height, width, _ = source.shape
        every = [None, range(0, height, rows), range(0, width, columns), None]
        same = all(part in (None, all_) for part, all_ in zip(taken, every, strict=True))
        return (source, (rows, columns)) if same else (x, (1, 1))

    def _linear(
        self,
        kind: str,
        x: Operand,
        kernel: np.ndarray,
        shape: Sequence[Size],
        attributes: dict[str, Any],
        bias: np.ndarray | None = None,
    ) -> Tensor:
        inputs = [x, kernel] if bias is None else [x, kernel, bias]
        result = self.node(kind, inputs, shape, kind == "Conv", **attributes)
        if bias is None and kind != "MatMul":
            self._without_bias[result.name] = kind, x, kernel, shape, attributes
        return result

    def keep(self, x: Operand) -> None:
        """Marks a tensor as used several times, so no offset is merged into it.

        Otherwise its product would be computed twice.
        """
        if isinstance(x, Tensor):
            self._without_bias.pop(x.name, None)

    def reduce(self, kind: str, x: Any, axes: Sequence[int]) -> Tensor:
        """Applies a reduction and removes the reduced axes."""
        stored = x.stored(range(len(x.shape)))
        kept = [axis for axis in stored if axis not in axes]
        first = kept != sorted(kept)
        if first and (len(kept) < 4 or kept[-3] != max(kept)):
            return self.reduce(kind, self.lay(x, False), axes)
        shape = [size for axis, size in enumerate(x.shape) if axis not in axes]
        places = [place for place, axis in enumerate(stored) if axis in axes]
        return self.node(kind, [x], shape, first, axes=places, keepdims=0)

    def slice(self, x: Tensor, parts: Sequence[range | None]) -> Tensor:
        """Slices each axis; None keeps all of it. A slice of a slice becomes a single one."""
        if all(part is None for part in parts):
            return x
        x, before = self._sliced.get(x.name, (x, [None] * len(parts)))
        both = [_part(*pair) for pair in zip(before, parts, strict=True)]
        shape = [
            size if part is None else len(part) for size, part in zip(x.shape, both, strict=True)
        ]
        cut = [(axis, part) for axis, part in enumerate(x.stored(both)) if part is not None]
        bounds = [(part.start, part.stop, axis, part.step) for axis, part in cut]
        result = self.node("Slice", [x, *np.array(bounds, np.int64).T], shape, x.channels_first)
        self._sliced[result.name] = x, both
        return result

    def pad(self, x: Tensor, ends: Sequence[tuple[int, int]], value: np.ndarray) -> Tensor:
        """Pads both ends of each axis; a negative number crops."""
        sizes = list(zip(x.shape, ends, strict=True))
        x = self.slice(
            x,
            [
                range(max(0, -low), size - max(0, -high)) if min(low, high) < 0 else None
                for size, (low, high) in sizes
            ],
        )
        added = np.maximum(ends, 0).tolist()
        if not np.any(added):
            return x
        shape = [size if low == high == 0 else size + low + high for size, (low, high) in sizes]
        inputs = [x, np.array(x.stored(added), np.int64).T.reshape(-1), value]
        return self.node("Pad", inputs, shape, x.channels_first)

    def concatenate(self, parts: Sequence[Operand], axis: int, shape: Sequence[Size]) -> Operand:
        parts = [part for part in parts if 0 not in part.shape]
        if len(parts) == 1:
            return parts[0]
        first = any(isinstance(part, Tensor) and part.channels_first for part in parts)
        stored = order(len(shape), first).index(axis)
        return self.node("Concat", [self.lay(x, first) for x in parts], shape, first, axis=stored)

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: dict[str, Any]
    ) -> onnx.ModelProto:
        """Returns the checked graph, with only those nodes that the outputs need."""
        needed, nodes = {tensor.name for tensor in outputs.values()}, []
        for node in reversed(self._nodes):
            if node.output[0] in needed:
                needed.update(node.input)
                nodes.insert(0, node)
        renamed = {tensor.name: name for name, tensor in outputs.items()}
        for node in nodes:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        described = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, tensor.stored(tensor.shape))
            for name, tensor in outputs.items()
        ]
        constants = [tensor for name, tensor in self._initializers.items() if name in needed]
        model = helper.make_model(
            helper.make_graph(nodes, "tsm", inputs, described, constants),
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="tsm_jax",
            ir_version=IR_VERSION,
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _of_channels(value: np.ndarray) -> bool:
    """Returns whether a constant varies along the last axis only, or not at all."""
    return value.size == 1 or value.shape[-1:] == (value.size,) != (0,)


def _part(first: range | None, then: range | None) -> range | None:
    """Combines two successive slices of an axis."""
    if first is None or then is None:
        return then if first is None else first
    return first[then.start : then.stop : then.step]
