"""int8 convolutions after training, with ONNX Runtime's quantizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from onnxruntime.quantization import (  # pyright: ignore[reportMissingImports]
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from tsm_jax.deploy.artifact import VIDEO


class _Clips(CalibrationDataReader):
    """Gives one clip at a time, uint8 `[1, T, S, S, 3]`."""

    def __init__(self, clips: np.ndarray):
        self._clips: Iterator[np.ndarray] = iter(clips)

    def get_next(self) -> dict[str, np.ndarray] | None:
        clip = next(self._clips, None)
        return None if clip is None else {VIDEO: clip[None]}


def quantize(float_path: str, int8_path: str, clips: np.ndarray) -> None:
    """Writes the int8 graph of a float32 one, calibrated on clips, uint8 `[N, T, S, S, 3]`.

    Weights get a scale per output channel, activations one per tensor, from their extremes on the
    clips. The graph is in ONNX's QDQ form, which ONNX Runtime, OpenVINO and TensorRT understand.

    Relu and Clip are quantized with what is before them: the ends of the output's range do what
    they did. Otherwise the 256 values also cover what they cut off, and MobileNetV2 is lost.
    """
    # The quantizer asks for a pre-processing that this graph, with its shapes, does not need.
    with _without_warnings():
        quantize_static(
            float_path,
            int8_path,
            _Clips(clips),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Relu", "Clip", "Add", "MaxPool"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """The quantizer logs through the root logger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(max(logging.ERROR, before))
    try:
        yield
    finally:
        root.setLevel(before)
