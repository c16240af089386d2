"""The exported ONNX graph through ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]

from tsm_jax.deploy.artifact import FEATURES, FRAME, LOGITS, NEXT_STATE, VIDEO, Ports, State, states
from tsm_jax.errors import UserError
from tsm_jax.files import reason
from tsm_jax.host import given_cores

# float32 stays float32: CUDA would otherwise multiply in TF32, three digits.
_GPU_OPTIONS: dict[str, dict[str, Any]] = {
    "TensorrtExecutionProvider": {},
    "CUDAExecutionProvider": {"use_tf32": 0},
}

_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxRuntimeGraph:
    """An ONNX file, on GPU where the installed ONNX Runtime has a provider for it.

    Raises:
        UserError: ONNX Runtime cannot read the file.
    """

    def __init__(self, path: str, precision: str):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised as well
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
        self.ports: Ports = {
            port.name: (
                _DTYPES.get(port.type or "", str(port.type)),
                tuple(n if isinstance(n, int) else None for n in port.shape),
            )
            for port in (*self._session.get_inputs(), *self._session.get_outputs())
        }

    def run(self, video: np.ndarray, output: str) -> np.ndarray:
        result = np.asarray(self._run([output], {VIDEO: video})[0])
        return np.moveaxis(result, 2, -1) if output == FEATURES else result

    def step(self, frame: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        inputs = dict(zip(states(self.ports), state, strict=True))
        outputs = [LOGITS, *(NEXT_STATE.format(i) for i in range(len(state)))]
        logits, *state = self._run(outputs, {FRAME: frame, **inputs})
        return logits, state

    def _run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[Any]:
        try:
            return list(self._session.run(outputs, inputs))
        except Exception as error:  # such as a lack of memory
            raise UserError(f"ONNX Runtime cannot run {self._path}: {reason(error)}") from error


def gpu_providers() -> list[str]:
    """The GPU providers of the installed ONNX Runtime, the fastest first."""
    available = onnxruntime.get_available_providers()
    return [name for name in _GPU_OPTIONS if name in available]
