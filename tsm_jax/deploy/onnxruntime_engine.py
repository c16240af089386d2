"""The exported ONNX graph through ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]

from tsm_jax.deploy.artifact import Ports
from tsm_jax.deploy.engine import check_video, fixed_dims
from tsm_jax.deploy.names import FEATURES, LOGITS, VIDEO
from tsm_jax.errors import UserError
from tsm_jax.files import reason

# float32 stays float32: CUDA would otherwise multiply in TF32, three digits.
_GPU_OPTIONS: dict[str, dict[str, Any]] = {
    "TensorrtExecutionProvider": {},
    "CUDAExecutionProvider": {"use_tf32": 0},
}

_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class OnnxRuntimeEngine:
    """Runs an ONNX file, on GPU where the installed ONNX Runtime has a provider for it.

    Raises:
        UserError: ONNX Runtime cannot read the file.
    """

    name = "onnxruntime"

    def __init__(self, path: str, precision: str):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised as well
        gpu = gpu_providers()
        providers = [(name, _GPU_OPTIONS[name]) for name in gpu]
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=[*providers, "CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no common base
            raise UserError(f"ONNX Runtime cannot load {path}: {reason(error)}") from error
        self._path = path
        self.clip_shape = fixed_dims(self._session.get_inputs()[0].shape)
        self.precision = precision
        self.device = self._session.get_providers()[0].removesuffix("ExecutionProvider").lower()
        self.batch_size = 1 if self.device == "cpu" else 16

    def ports(self) -> Ports:
        """The graph's inputs and outputs."""
        return {
            port.name: (
                _DTYPES.get(port.type or "", str(port.type)),
                [n if isinstance(n, int) else None for n in port.shape],
            )
            for port in (*self._session.get_inputs(), *self._session.get_outputs())
        }

    def logits(self, video: np.ndarray) -> np.ndarray:
        return self._run(video, LOGITS)

    def features(self, video: np.ndarray) -> np.ndarray:
        return self._run(video, FEATURES).transpose(0, 1, 3, 4, 2)  # [N, T, h, w, C]

    def _run(self, video: np.ndarray, output: str) -> np.ndarray:
        video = check_video(video, self.clip_shape)
        try:
            return np.asarray(self._session.run([output], {VIDEO: video})[0])
        except Exception as error:  # such as a lack of memory
            raise UserError(f"ONNX Runtime cannot run {self._path}: {reason(error)}") from error


def gpu_providers() -> list[str]:
    """The GPU providers of the installed ONNX Runtime, the fastest first."""
    available = onnxruntime.get_available_providers()
    return [name for name in _GPU_OPTIONS if name in available]
