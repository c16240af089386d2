"""Weights that were not exported, behind the interface of an engine. Needs flax."""

from __future__ import annotations

import jax
import numpy as np

from tsm_jax.deploy.engine import ClipShape, check_video
from tsm_jax.exporting.program import make_program
from tsm_jax.models.normalize import normalize
from tsm_jax.recognizer import Recognizer


class RecognizerEngine:
    """The network itself; `forward` of the recognizer gives the logits."""

    name = "jax"

    def __init__(self, recognizer: Recognizer, precision: str):
        self._recognizer = recognizer
        self.precision = precision
        self.device = jax.default_backend()
        self.batch_size = 1 if self.device == "cpu" else 16
        self.clip_shape: ClipShape = (recognizer.num_segments, None, None, 3)
        self._forward = None

    def logits(self, video: np.ndarray) -> np.ndarray:
        video = check_video(video, self.clip_shape)
        return self._recognizer.forward(np.asarray(normalize(video, "NHWC")))

    def features(self, video: np.ndarray) -> np.ndarray:
        if self._forward is None:
            program = make_program(self._recognizer.model)
            self._forward = jax.jit(lambda video: program(video)[1])
        return np.asarray(self._forward(video))
