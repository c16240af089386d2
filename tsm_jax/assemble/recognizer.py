"""Recognition of actions in videos by a network in jax."""

from __future__ import annotations

import hashlib
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from tsm_jax.data.protocols import protocol_of
from tsm_jax.deploy.artifact import FEATURES, State
from tsm_jax.deploy.engine import Engine, StreamEngine
from tsm_jax.deploy.predictor import Predictor
from tsm_jax.deploy.stream import Stream
from tsm_jax.exporting.program import make_stream_program
from tsm_jax.models.architecture import CLASSIFIER
from tsm_jax.models.network import Tensors, build_network, normalize
from tsm_jax.weights.model_directory import Model, check_tensors


class Recognizer(Predictor):
    """A predictor that runs a model in jax; `tsm_jax.load` returns it for anything not exported.

    Args:
        model: the network with its weights.
        precision: precision of convolutions: `float32` or `bfloat16`.
        protocol: which views of a video are averaged; None for the protocol of `model`.
        source: where the model was read from, for messages.

    Attributes:
        model: the network with its weights.
    """

    def __init__(
        self,
        model: Model,
        *,
        precision: str = "float32",
        protocol: str | None = None,
        source: str = "the model",
    ):
        self.model = model
        self._precision = precision
        self._network = build_network(model.architecture, precision)
        params, stats = self._network.param_shapes, self._network.batch_stat_shapes
        check_tensors(model.tensors, {**params, **stats}, source)
        # Not `jnp.asarray`, which compiles a program for each shape.
        self.params, self.batch_stats = jax.device_put(
            tuple({name: model.tensors[name] for name in names} for names in (params, stats))
        )
        self._forward = jax.jit(lambda *inputs: self._network.apply(*inputs)[0])
        self._features = jax.jit(self._apply_backbone)
        shape = (model.architecture.num_segments, None, None, 3)
        super().__init__(
            Engine("jax", precision, jax.default_backend(), shape, self._run_engine),
            model.labels,
            model.architecture,
            protocol_of(model.preprocessing, protocol),
            lambda: np.asarray(self.params[CLASSIFIER]),
            source=source,
            fingerprint=self._fingerprint,
        )

    def forward(self, video: np.ndarray) -> np.ndarray:
        """Computes the logits of clips.

        Args:
            video: normalised clips, float32 `[N, T, H, W, 3]`: RGB in [0, 1] minus the mean
                (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).

        Returns:
            Logits, float32 `[N, K]`.

        Raises:
            ValueError: `video` has a different shape.
        """
        if video.ndim != 5 or video.shape[1] != self.num_segments or video.shape[4] != 3:
            expected = f"[N, {self.num_segments}, H, W, 3]"
            raise ValueError(f"video has shape {video.shape}: it must be {expected}")
        return np.asarray(self._forward(self.params, self.batch_stats, video))

    def stream(self) -> Stream:
        """Returns a new stream of frames; streams are independent of each other.

        Raises:
            UserError: the network was not trained with `shift="past_only"`, so it needs future
                frames.
        """
        preprocessing, source = self.model.preprocessing, self.source
        return Stream(
            self._stream_engine, self.labels, self.num_segments, preprocessing, source=source
        )

    @cached_property
    def _stream_engine(self) -> StreamEngine:
        program = make_stream_program(self.model, self._precision, self.source)
        forward = jax.jit(lambda *inputs: program(*inputs))

        def step(frame: np.ndarray, state: State) -> tuple[np.ndarray, State]:
            logits, *after = forward(frame, *state)  # the state stays on the device
            return np.asarray(logits), after

        start = [jnp.zeros(each.shape, each.dtype) for each in program.state]
        return StreamEngine("jax", jax.default_backend(), start, step)

    def _run_engine(self, video: np.ndarray, output: str) -> np.ndarray:
        if output == FEATURES:
            return np.asarray(self._features(self.params, self.batch_stats, video))
        return self.forward(np.asarray(normalize(video)))

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.model.architecture).encode())
        for name, tensor in sorted(self.model.tensors.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor).data)
        return digest.hexdigest()

    def _apply_backbone(self, params: Tensors, batch_stats: Tensors, video: jax.Array) -> jax.Array:
        features = self._network.module(params, batch_stats).features(normalize(video))
        return features.astype(jnp.float32).reshape(*video.shape[:2], *features.shape[1:])
