"""int8 convolutions after training, with ONNX Runtime's quantizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]
from onnxruntime.quantization import (  # pyright: ignore[reportMissingImports]
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from tsm_jax.deploy.artifact import LOGITS, VIDEO


class _Clips(CalibrationDataReader):
    """Gives one clip at a time, uint8 `[1, T, S, S, 3]`."""

    def __init__(self, clips: np.ndarray):
        self._clips: Iterator[np.ndarray] = iter(clips)

    def get_next(self) -> dict[str, np.ndarray] | None:
        clip = next(self._clips, None)
        return None if clip is None else {VIDEO: clip[None]}


def quantize(float_path: str, int8_path: str, clips: np.ndarray) -> dict[str, Any]:
    """Writes the int8 graph of a float32 one.

    Weights get a scale per output channel, activations one per tensor, from their extremes on the
    clips. The graph is in ONNX's QDQ form, which ONNX Runtime, OpenVINO and TensorRT understand.

    Args:
        float_path: the ONNX graph.
        int8_path: to write.
        clips: to calibrate on, uint8 `[N, T, S, S, 3]`.

    Returns:
        `clips`, how many, and `agreement`, the share of them with the same best class as float32.
    """
    # The quantizer asks for a pre-processing that this graph, with its shapes, does not need.
    with _without_warnings():
        quantize_static(
            float_path,
            int8_path,
            _Clips(clips),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add", "MaxPool"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    float32, int8 = _best(float_path, clips), _best(int8_path, clips)
    return {"clips": len(clips), "agreement": float(np.mean(float32 == int8))}


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


def _best(path: str, clips: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return np.array(
        [np.argmax(np.asarray(session.run([LOGITS], {VIDEO: clip[None]})[0])) for clip in clips]
    )
