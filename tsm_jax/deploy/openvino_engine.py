"""The exported ONNX graph through OpenVINO, on CPU."""

from __future__ import annotations

import sys

import numpy as np

# On import OpenVINO forks a process that reports to its makers. Prediction must not talk to the
# network, nor fork beside the threads of jax; without this package OpenVINO does neither.
sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]

import openvino  # noqa: E402  # pyright: ignore[reportMissingImports]
from openvino.frontend import FrontEndManager  # noqa: E402  # pyright: ignore[reportMissingImports]

from tsm_jax.deploy.artifact import Ports  # noqa: E402
from tsm_jax.deploy.engine import check_video  # noqa: E402
from tsm_jax.deploy.names import FEATURES, LOGITS, VIDEO  # noqa: E402
from tsm_jax.errors import UserError  # noqa: E402
from tsm_jax.files import reason  # noqa: E402

_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


class OpenVinoEngine:
    """Runs an ONNX file; compiles it (a quarter of a second) for every batch size that it meets,
    because a graph of fixed shape is faster.

    Raises:
        UserError: OpenVINO cannot read the file, or this processor has no bfloat16.
    """

    name = "openvino"
    device = "cpu"
    batch_size = 1

    def __init__(self, path: str, precision: str):
        self._core = openvino.Core()
        if precision == "bfloat16" and not has_bfloat16():
            raise UserError("OpenVINO finds no bfloat16 in this processor: take float32")
        # Core.read_model lets every front end try what it may be, and they complain on stderr.
        onnx = FrontEndManager().load_by_framework("onnx")
        try:
            self._model = onnx.convert(onnx.load(path))
        except Exception as error:  # its exceptions have no common base
            raise UserError(f"OpenVINO cannot load {path}: {reason(error)}") from error
        self.clip_shape = tuple(self.ports().get(VIDEO, ("", ()))[1][1:])
        self.precision = precision
        self._requests: dict[tuple[int, ...], openvino.InferRequest] = {}

    def ports(self) -> Ports:
        """The graph's inputs and outputs."""
        return {
            port.any_name: (
                port.element_type.to_dtype().name,
                [n.get_length() if n.is_static else None for n in port.partial_shape],
            )
            for port in (*self._model.inputs, *self._model.outputs)
        }

    def logits(self, video: np.ndarray) -> np.ndarray:
        return self._run(video, LOGITS)

    def features(self, video: np.ndarray) -> np.ndarray:
        return self._run(video, FEATURES).transpose(0, 1, 3, 4, 2)  # [N, T, h, w, C]

    def _run(self, video: np.ndarray, output: str) -> np.ndarray:
        video = check_video(video, self.clip_shape)
        request = self._requests.get(video.shape) or self._compile(video.shape)
        request.infer({VIDEO: video}, share_inputs=True)
        return request.get_tensor(output).data.copy()

    def _compile(self, shape: tuple[int, ...]) -> openvino.InferRequest:
        model = self._model.clone()
        model.reshape(openvino.PartialShape(list(shape)))
        compiled = self._core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        self._requests[shape] = compiled.create_infer_request()
        return self._requests[shape]


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
