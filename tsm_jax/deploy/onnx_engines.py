"""Runs the exported ONNX graph in ONNX Runtime or OpenVINO, each imported only when it is used."""

from __future__ import annotations

import functools
import sys
import threading
from typing import Any

import numpy as np

from tsm_jax.deploy.artifact import FEATURES, FRAME, LOGITS, NEXT_STATE, VIDEO, Ports, State, states
from tsm_jax.errors import UserError
from tsm_jax.files import reason
from tsm_jax.host import given_cores

# float32 must stay float32: by default CUDA multiplies in TF32, with three digits.
_GPU_OPTIONS: dict[str, dict[str, Any]] = {
    "TensorrtExecutionProvider": {},
    "CUDAExecutionProvider": {"use_tf32": 0},
}
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # for OpenVINO


class _OnnxGraph:
    ports: Ports

    def run(self, video: np.ndarray, output: str) -> np.ndarray:
        result = np.asarray(self._compute({VIDEO: video}, [output])[0])
        return np.moveaxis(result, 2, -1) if output == FEATURES else result

    def step(self, frame: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        inputs = dict(zip(states(self.ports), state, strict=True))
        outputs = [LOGITS, *(NEXT_STATE.format(i) for i in range(len(state)))]
        logits, *state = self._compute({FRAME: frame, **inputs}, outputs)
        return logits, state

    def _compute(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        """Returns the outputs; the shape of the first input decides what is compiled."""
        raise NotImplementedError


class OnnxRuntimeGraph(_OnnxGraph):
    """An ONNX file, run on a GPU if the installed ONNX Runtime has a provider for it.

    Raises:
        UserError: ONNX Runtime cannot read the file.
    """

    def __init__(self, path: str, precision: str):
        import onnxruntime  # pyright: ignore[reportMissingImports]

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # only fatal ones: errors are raised as well
        options.intra_op_num_threads = given_cores()  # 0: one per core
        providers = [(name, _GPU_OPTIONS[name]) for name in gpu_providers()]
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=[*providers, "CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common base
            raise UserError(f"ONNX Runtime cannot load {path}: {reason(error)}") from error
        self._path = path
        self.device = self._session.get_providers()[0].removesuffix("ExecutionProvider").lower()
        self.ports = {
            port.name: (
                _DTYPES.get(port.type or "", str(port.type)),
                tuple(n if isinstance(n, int) else None for n in port.shape),
            )
            for port in (*self._session.get_inputs(), *self._session.get_outputs())
        }

    def _compute(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[Any]:
        try:
            return list(self._session.run(outputs, inputs))
        except Exception as error:  # such as running out of memory
            raise UserError(f"ONNX Runtime cannot run {self._path}: {reason(error)}") from error


def gpu_providers() -> list[str]:
    """Returns the GPU providers of the installed ONNX Runtime, fastest first."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    available = onnxruntime.get_available_providers()
    return [name for name in _GPU_OPTIONS if name in available]


@functools.cache
def _openvino() -> tuple[Any, Any]:
    """Returns the package, and the only core of this process, kept until the process ends.

    A CPU plugin gives the thread that opens it a stack for signal handlers, and frees that memory
    when it is destroyed. With a second plugin, the thread would keep the freed stack, and the next
    Ctrl-C would crash it.
    """
    # On import, OpenVINO forks a process that sends telemetry. Prediction must neither use the
    # network nor fork next to jax's threads; without this package OpenVINO does neither.
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    import openvino.frontend  # pyright: ignore[reportMissingImports]

    return openvino, openvino.Core()


class OpenVinoGraph(_OnnxGraph):
    """An ONNX file, run on a CPU.

    It is compiled (a quarter of a second) once per batch size, because a graph with a fixed shape
    is faster.

    Raises:
        UserError: OpenVINO cannot read the file, or this processor does not support bfloat16.
    """

    device = "cpu"

    def __init__(self, path: str, precision: str):
        if precision == "bfloat16" and not has_bfloat16():
            raise UserError("this processor does not support bfloat16 in OpenVINO: use float32")
        # Core.read_model tries every front end, and those that fail print to stderr.
        onnx = _openvino()[0].frontend.FrontEndManager().load_by_framework("onnx")
        try:
            self._model = onnx.convert(onnx.load(path))
        except Exception as error:  # its exceptions have no common base
            raise UserError(f"OpenVINO cannot load {path}: {reason(error)}") from error
        self.ports = {
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
        self._requests: dict[tuple[int, ...], Any] = {}

    def _compute(self, inputs: dict[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
        shape = next(iter(inputs.values())).shape
        with self._one_at_a_time:  # streams of other threads use the same request
            request = self._requests.get(shape) or self._compile(shape)
            request.infer(inputs, share_inputs=True)
            return [request.get_tensor(name).data.copy() for name in outputs]

    def _compile(self, shape: tuple[int, ...]) -> Any:
        openvino, core = _openvino()
        model = self._model.clone()
        if VIDEO in self.ports:
            model.reshape(openvino.PartialShape(list(shape)))
        compiled = core.compile_model(model, "CPU", self._settings)
        self._requests[shape] = compiled.create_infer_request()
        return self._requests[shape]


def has_bfloat16() -> bool:
    """Returns whether OpenVINO supports bfloat16 on this processor."""
    return "BF16" in _openvino()[1].get_property("CPU", "OPTIMIZATION_CAPABILITIES")
