"""int8 convolutions after training, with ONNX Runtime's quantizer."""

from __future__ import annotations

import logging

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
import onnxruntime  # pyright: ignore[reportMissingImports]
from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]
from onnxruntime.quantization import (  # pyright: ignore[reportMissingImports]
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from tsm_jax.deploy.artifact import INT8_WEIGHT_LIMIT, VIDEO


class _Clips(CalibrationDataReader):
    """Gives one clip at a time, uint8 `[1, T, S, S, 3]`, then None."""

    def __init__(self, clips: np.ndarray):
        self._feeds = ({VIDEO: clip[None]} for clip in clips)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantize(float_path: str, int8_path: str, clips: np.ndarray) -> None:
    """Writes the int8 graph of a float32 one, calibrated on clips, uint8 `[N, T, S, S, 3]`.

    Weights get a scale per output channel, activations one per tensor, from their extremes on the
    clips. The graph is in ONNX's QDQ form, which ONNX Runtime and OpenVINO understand.

    Weights that are summed over input channels lie in [-64, 64]: x86 processors without VNNI add
    two products of an unsigned and a signed byte in 16 bits, and beyond that the engines answer
    something else there, without a word. What rounding the weights adds to the mean of an output
    channel is taken from its bias (Nagel et al., "Data-Free Quantization Through Weight
    Equalization and Bias Correction", 2019, section 4.2, with means from the clips).

    Relu and Clip are quantized with what is before them: the ends of the output's range do what
    they did. Otherwise the 256 values also cover what they cut off, and MobileNetV2 is lost.
    """
    model = onnx.load(float_path)
    narrow = _correct_biases(model, _input_means(model, clips))
    overrides = {name: [{"axis": 0, "symmetric": True, "reduce_range": True}] for name in narrow}
    # The quantizer asks, through the root logger, for a pre-processing that this graph, with its
    # shapes, does not need.
    root = logging.getLogger()
    before = root.level
    root.setLevel(max(logging.ERROR, before))
    try:
        quantize_static(
            model,
            int8_path,
            _Clips(clips),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Relu", "Clip", "Add", "MaxPool"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"TensorQuantOverrides": overrides},
        )
    finally:
        root.setLevel(before)


def _input_means(model: onnx.ModelProto, clips: np.ndarray) -> dict[str, np.ndarray]:
    """The mean of each channel of each convolution's input over clips, float64 `[C]`."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inputs = sorted({conv.input[0] for conv in _convolutions(model)})
    means = [f"{name}.mean" for name in inputs]
    for name, mean in zip(inputs, means, strict=True):
        watched.graph.node.append(helper.make_node("GlobalAveragePool", [name], [mean]))
        watched.graph.output.append(helper.make_empty_tensor_value_info(mean))
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    pooled = zip(*(session.run(means, {VIDEO: clip[None]}) for clip in clips), strict=True)
    return {
        name: np.array(of_clips, np.float64).mean((0, 1, 3, 4))  # [clips, frames, C, 1, 1]
        for name, of_clips in zip(inputs, pooled, strict=True)
    }


def _correct_biases(model: onnx.ModelProto, input_means: dict[str, np.ndarray]) -> list[str]:
    """Takes from the biases what rounding adds.

    Returns:
        The names of the weights to be kept in [-64, 64].
    """
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    narrow = []
    for conv in _convolutions(model):
        weights = numpy_helper.to_array(initializers[conv.input[1]]).astype(np.float64)
        outputs, inputs = weights.shape[:2]
        largest = np.abs(weights).max((1, 2, 3), keepdims=True)
        if inputs > 1:  # no engine pairs the products of depthwise convolutions
            narrow.append(conv.input[1])
        step = np.where(largest > 0, largest, 1) / (INT8_WEIGHT_LIMIT if inputs > 1 else 127)
        added = (np.round(weights / step) * step - weights).sum((2, 3))  # [outputs, inputs]
        means = input_means[conv.input[0]].reshape(-1, inputs)  # [groups, inputs]
        shift = (added * np.repeat(means, outputs // len(means), axis=0)).sum(1)
        if len(conv.input) > 2:
            bias = initializers[conv.input[2]]
            shift = shift - numpy_helper.to_array(bias)
        else:
            bias = model.graph.initializer.add(name=f"{conv.input[1]}.bias")
            conv.input.append(bias.name)
        bias.CopyFrom(numpy_helper.from_array(-shift.astype(np.float32), bias.name))
    return narrow


def _convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Conv"]
