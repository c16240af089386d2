"""Runs the exported StableHLO in jax, on the device that jax finds."""

from __future__ import annotations

import jax
import numpy as np
from jax import export

from tsm_jax.deploy.artifact import (
    FEATURES,
    FRAME,
    LOGITS,
    NEXT_STATE,
    STATE,
    VIDEO,
    Ports,
    State,
)
from tsm_jax.errors import UserError
from tsm_jax.files import reason


class JaxGraph:
    """A StableHLO file, which is compiled once per batch size.

    Raises:
        UserError: this version of jax cannot read the file, or it is not for this device.
    """

    def __init__(self, path: str, precision: str):
        with open(path, "rb") as file:
            content = file.read()
        try:
            exported = export.deserialize(bytearray(content))
        except Exception as error:  # flatbuffers and jaxlib raise many kinds
            raise UserError(
                f"jax {jax.__version__} cannot read {path} ({reason(error)}): export the model"
                " again with this version"
            ) from error
        self.device = jax.default_backend()
        names, avals = (VIDEO, LOGITS, FEATURES), (*exported.in_avals, *exported.out_avals)
        if len(exported.in_avals) > 1:  # a graph for streams
            numbers = range(len(exported.in_avals) - 1)
            names = FRAME, *map(STATE.format, numbers), LOGITS, *map(NEXT_STATE.format, numbers)
        self.ports: Ports = {
            name: (str(aval.dtype), tuple(n if isinstance(n, int) else None for n in aval.shape))
            for name, aval in zip(names, avals, strict=False)
        }
        # One program per output, because XLA leaves out what an output does not need.
        self._outputs = {
            LOGITS: jax.jit(lambda video: exported.call(video)[0]),
            FEATURES: jax.jit(lambda video: exported.call(video)[1]),
        }
        self._step = jax.jit(exported.call)

    def run(self, video: np.ndarray, output: str) -> np.ndarray:
        return np.asarray(self._outputs[output](video))

    def step(self, frame: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        logits, *state = self._step(frame, *state)  # the state stays on the device
        return np.asarray(logits), state
