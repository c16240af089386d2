"""The exported ONNX graph through OpenVINO, on CPU."""

from __future__ import annotations

import functools
import sys
import threading

import numpy as np

# On import OpenVINO forks a process that reports to its makers. Prediction must not talk to the
# network, nor fork beside the threads of jax; without this package OpenVINO does neither.
sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]

import openvino  # noqa: E402  # pyright: ignore[reportMissingImports]
from openvino.frontend import FrontEndManager  # noqa: E402  # pyright: ignore[reportMissingImports]

from tsm_jax.deploy.artifact import (  # noqa: E402
    FEATURES,
    FRAME,
    LOGITS,
    NEXT_STATE,
    VIDEO,
    Ports,
    State,
    states,
)
from tsm_jax.errors import UserError  # noqa: E402
from tsm_jax.files import reason  # noqa: E402
from tsm_jax.host import given_cores  # noqa: E402

_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}


@functools.cache
def _core() -> openvino.Core:
    """The only one of the process, kept to its end.

    A CPU plugin gives the thread that opens it a stack for signal handlers, and frees that memory
    with itself. With a second one the thread keeps the freed stack, and the next Ctrl-C crashes it.
    """
    return openvino.Core()


class OpenVinoGraph:
    """An ONNX file; it is compiled (a quarter of a second) for every batch size that it meets,
    because a graph of fixed shape is faster.

    Raises:
        UserError: OpenVINO cannot read the file, or this processor has no bfloat16.
    """

    device = "cpu"

    def __init__(self, path: str, precision: str):
        if precision == "bfloat16" and not has_bfloat16():
            raise UserError("OpenVINO finds no bfloat16 in this processor: take float32")
        # Core.read_model lets every front end try what it may be, and they complain on stderr.
        onnx = FrontEndManager().load_by_framework("onnx")
        try:
            self._model = onnx.convert(onnx.load(path))
        except Exception as error:  # its exceptions have no common base
            raise UserError(f"OpenVINO cannot load {path}: {reason(error)}") from error
        self.ports: Ports = {
            port.any_name: (
                port.element_type.to_dtype().name,
                tuple(n.get_length() if n.is_static else None for n in port.partial_shape),
            )
            for port in (*self._model.inputs, *self._model.outputs)
        }
        self._settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": given_cores(),  # 0: one per core
        }
        self._one_at_a_time = threading.Lock()
        self._requests: dict[tuple[int, ...], openvino.InferRequest] = {}

    def run(self, video: np.ndarray, output: str) -> np.ndarray:
        request = self._requests.get(video.shape) or self._compile(video.shape)
        request.infer({VIDEO: video}, share_inputs=True)
        result = request.get_tensor(output).data.copy()
        return np.moveaxis(result, 2, -1) if output == FEATURES else result

    def step(self, frame: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        inputs = dict(zip(states(self.ports), state, strict=True))
        outputs = (LOGITS, *(NEXT_STATE.format(i) for i in range(len(state))))
        with self._one_at_a_time:  # streams of other threads use the same request
            request = self._requests.get(frame.shape) or self._compile(frame.shape)
            request.infer({FRAME: frame, **inputs}, share_inputs=True)
            logits, *state = (request.get_tensor(name).data.copy() for name in outputs)
        return logits, state

    def _compile(self, shape: tuple[int, ...]) -> openvino.InferRequest:
        model = self._model.clone()
        if VIDEO in self.ports:
            model.reshape(openvino.PartialShape(list(shape)))
        compiled = _core().compile_model(model, "CPU", self._settings)
        self._requests[shape] = compiled.create_infer_request()
        return self._requests[shape]


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
