"""Post-training quantization of convolutions to int8 with ONNX Runtime's quantizer."""

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
    """Returns one clip at a time, uint8 `[1, T, S, S, 3]`, then None."""

    def __init__(self, clips: np.ndarray):
        self._feeds = ({VIDEO: clip[None]} for clip in clips)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantize(float_path: str, int8_path: str, clips: np.ndarray) -> None:
    """Quantizes a float32 ONNX graph to int8.

    Weights get one scale per output channel, activations one per tensor, determined from their
    extremes on the clips. The graph is in ONNX's QDQ format, which ONNX Runtime and OpenVINO
    support.

    Weights that are summed over input channels are limited to [-64, 64]: x86 processors without
    VNNI add two products of an unsigned and a signed byte in 16 bits, and with larger weights the
    engines silently return wrong results there. The change that rounding the weights causes in the
    mean of an output channel is subtracted from its bias (Nagel et al., "Data-Free Quantization
    Through Weight Equalization and Bias Correction", 2019, section 4.2, with means from the clips).

    Relu and Clip are quantized together with the preceding operation, whose output range then does
    the clipping. Otherwise part of the 256 values would be spent on values that are clipped, which
    ruins the accuracy of MobileNetV2.

    Args:
        float_path: the float32 graph.
        int8_path: where the int8 graph is written.
        clips: calibration clips, uint8 `[N, T, S, S, 3]`.
    """
    model = onnx.load(float_path)
    narrow = _correct_biases(model, _input_means(model, clips))
    overrides = {name: [{"axis": 0, "symmetric": True, "reduce_range": True}] for name in narrow}
    # Hide the quantizer's request for pre-processing, which it sends to the root logger: this graph
    # has all shapes and does not need it.
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
    """Returns the channel means of each convolution's input over the clips, float64 `[C]`."""
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
    """Subtracts from the biases the change in the means that rounding the weights causes.

    Returns:
        The names of the weights that must be limited to [-64, 64].
    """
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    narrow = []
    for conv in _convolutions(model):
        weights = numpy_helper.to_array(initializers[conv.input[1]]).astype(np.float64)
        outputs, inputs = weights.shape[:2]
        largest = np.abs(weights).max((1, 2, 3), keepdims=True)
        if inputs > 1:  # no engine adds pairs of products in depthwise convolutions
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
