"""The folded network as an ONNX graph, written node by node.

    video  uint8 [N, T, S, S, 3]          RGB frames after resize and crop; N is free
    logits float32 [N, K]
    features float32 [N, T, C, h, w]      in front of the average pool, for activation maps

Images are NCHW inside. Paddings are explicit. The shift is Slice, Pad and Concat over
`[N, T, C, H, W]`, which every runtime knows (Paddle's own operator was what Paddle2ONNX and
TensorRT failed on).
"""

from __future__ import annotations

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
from onnx import TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports]

from tsm_jax.deploy.folding import PIXEL_MEAN, FoldedBlock, FoldedConv, FoldedNetwork, Folds
from tsm_jax.deploy.names import FEATURES, LOGITS, VIDEO

# Old enough for runtimes of 2022, new enough for all that is used here.
OPSET, IR_VERSION = 17, 8


def build_onnx(network: FoldedNetwork) -> onnx.ModelProto:
    """The checked graph of a network."""
    writer = _Writer(network.num_segments, network.crop_size)
    x = writer.pixels()
    x = writer.relu(writer.conv(x, network.stem))
    x = writer.max_pool(x)
    for block in network.blocks:
        x = writer.block(x, block)
    writer.head(x, network.fc_kernel, network.fc_bias)
    model = helper.make_model(
        writer.graph(num_classes=network.fc_bias.size),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="tsm_jax",
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class _Writer:
    """Collects nodes; every method returns the name of its result.

    `channels` and `size` are those of the image tensor written last in the trunk.
    """

    def __init__(self, num_segments: int, crop_size: int):
        self._num_segments = num_segments
        self._crop_size = crop_size
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._shapes: dict[str, tuple[int, int]] = {}  # result to (channels, side)

    def pixels(self) -> str:
        """uint8 frames to float32 `[N*T, 3, S, S]` less their mean."""
        size = self._crop_size
        x = self._reshape(VIDEO, (-1, size, size, 3))
        x = self._node("Transpose", x, perm=(0, 3, 1, 2))  # while a value is one byte
        x = self._node("Cast", x, to=TensorProto.FLOAT)
        x = self._node("Sub", x, self._constant(PIXEL_MEAN.reshape(1, 3, 1, 1)))
        self._shapes[x] = (3, size)
        return x

    def conv(self, x: str, conv: FoldedConv) -> str:
        size, channels = conv.kernel.shape[0], conv.kernel.shape[3]
        kernel = self._constant(conv.kernel.transpose(3, 2, 0, 1))  # OIHW
        result = self._node(
            "Conv",
            x,
            kernel,
            self._constant(conv.bias),
            kernel_shape=(size, size),
            strides=(conv.stride,) * 2,
            pads=(conv.padding,) * 4,
        )
        side = (self._shapes[x][1] + 2 * conv.padding - size) // conv.stride + 1
        self._shapes[result] = (channels, side)
        return result

    def relu(self, x: str) -> str:
        return self._like(x, self._node("Relu", x))

    def max_pool(self, x: str) -> str:
        """3x3, stride 2; ONNX pads a max pool with minus infinity."""
        result = self._node("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=(1,) * 4)
        channels, side = self._shapes[x]
        self._shapes[result] = (channels, (side - 1) // 2 + 1)
        return result

    def block(self, x: str, block: FoldedBlock) -> str:
        y = x if block.folds is None else self._shift(x, block.folds)
        for conv in block.convs[:-1]:
            y = self.relu(self.conv(y, conv))
        y = self.conv(y, block.convs[-1])
        shortcut = x if block.shortcut is None else self.conv(x, block.shortcut)
        return self.relu(self._like(y, self._node("Add", y, shortcut)))

    def head(self, x: str, kernel: np.ndarray, bias: np.ndarray) -> None:
        """Mean over pixels, then frames, then the classifier: it is affine, so the order is free
        (the model classifies frames first)."""
        channels, side = self._shapes[x]
        self._reshape(x, (-1, self._num_segments, channels, side, side), FEATURES)
        pooled = self._node("GlobalAveragePool", x)
        pooled = self._reshape(pooled, (-1, self._num_segments, channels))
        pooled = self._node("ReduceMean", pooled, axes=(1,), keepdims=0)
        weights = (self._constant(kernel), self._constant(bias))
        self._node("Gemm", pooled, *weights, result=LOGITS)
        self._shapes[FEATURES] = (channels, side)

    def graph(self, num_classes: int) -> onnx.GraphProto:
        size, frames = self._crop_size, self._num_segments
        channels, side = self._shapes[FEATURES]
        features = ("N", frames, channels, side, side)
        return helper.make_graph(
            self._nodes,
            "tsm",
            [helper.make_tensor_value_info(VIDEO, TensorProto.UINT8, ("N", frames, size, size, 3))],
            [
                helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ("N", num_classes)),
                helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, features),
            ],
            self._initializers,
        )

    def _shift(self, x: str, folds: Folds) -> str:
        channels, side = self._shapes[x]
        clips = self._reshape(x, (-1, self._num_segments, channels, side, side))
        past, future = (0, folds.first_end), (folds.first_end, folds.second_end)
        if not folds.past_first:
            past, future = future, past
        moved = [self._from_past(clips, *past), self._from_future(clips, *future)]
        if not folds.past_first:
            moved.reverse()
        rest = self._slice(clips, (2,), (folds.second_end,), (channels,))
        parts = [part for part in moved if part is not None]
        if folds.second_end < channels:
            parts.append(rest)
        joined = self._node("Concat", *parts, axis=2)
        return self._like(x, self._reshape(joined, (-1, channels, side, side)))

    def _from_past(self, clips: str, start: int, end: int) -> str | None:
        """Channels of the previous frame; the first frame gets zeros."""
        if start == end:
            return None
        kept = self._slice(clips, (1, 2), (0, start), (self._num_segments - 1, end))
        return self._node("Pad", kept, self._constant(np.array([0, 1, *[0] * 8], np.int64)))

    def _from_future(self, clips: str, start: int, end: int) -> str | None:
        """Channels of the next frame; the last frame gets zeros."""
        if start == end:
            return None
        kept = self._slice(clips, (1, 2), (1, start), (self._num_segments, end))
        return self._node("Pad", kept, self._constant(np.array([*[0] * 6, 1, *[0] * 3], np.int64)))

    def _slice(self, x: str, axes: tuple, starts: tuple, ends: tuple) -> str:
        bounds = [self._constant(np.array(values, np.int64)) for values in (starts, ends, axes)]
        return self._node("Slice", x, *bounds)

    def _reshape(self, x: str, shape: tuple[int, ...], result: str = "") -> str:
        target = self._constant(np.array(shape, np.int64))
        return self._node("Reshape", x, target, result=result)

    def _like(self, x: str, result: str) -> str:
        self._shapes[result] = self._shapes[x]
        return result

    def _constant(self, value: np.ndarray) -> str:
        name = f"constant_{len(self._initializers)}"
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        self._initializers.append(tensor)
        return name

    def _node(self, kind: str, *inputs: str, result: str = "", **attributes) -> str:
        result = result or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [result], result, **attributes))
        return result
