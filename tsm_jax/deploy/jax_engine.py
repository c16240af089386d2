"""The exported StableHLO through jax, on whatever device jax finds."""

from __future__ import annotations

import jax
import numpy as np
from jax import export

from tsm_jax.deploy.artifact import Ports
from tsm_jax.deploy.engine import check_video, fixed_dims
from tsm_jax.deploy.names import FEATURES, LOGITS, VIDEO
from tsm_jax.errors import UserError


class JaxEngine:
    """Runs a StableHLO file; compiles once for every batch size that it meets.

    Raises:
        UserError: this jax cannot read the file, or it is not for this device.
    """

    name = "jax"

    def __init__(self, path: str, precision: str):
        with open(path, "rb") as file:
            content = file.read()
        try:
            exported = export.deserialize(bytearray(content))
        except Exception as error:  # flatbuffers and jaxlib raise what they like
            raise UserError(
                f"{path}: jax {jax.__version__} cannot read it ({' '.join(str(error).split())});"
                " export the model again with it"
            ) from error
        self.clip_shape = fixed_dims(exported.in_avals[0].shape)
        platform = jax.default_backend()
        self.precision = precision
        self.device = platform
        self.batch_size = 1 if platform == "cpu" else 16
        self._logits = jax.jit(lambda video: exported.call(video)[0])
        self._features = jax.jit(lambda video: exported.call(video)[1])
        self._ports = {
            name: (str(aval.dtype), [n if isinstance(n, int) else None for n in aval.shape])
            for name, aval in zip(
                (VIDEO, LOGITS, FEATURES), (*exported.in_avals, *exported.out_avals), strict=False
            )
        }

    def ports(self) -> Ports:
        """The graph's input and outputs."""
        return self._ports

    def logits(self, video: np.ndarray) -> np.ndarray:
        return np.asarray(self._logits(check_video(video, self.clip_shape)))

    def features(self, video: np.ndarray) -> np.ndarray:
        return np.asarray(self._features(check_video(video, self.clip_shape)))
