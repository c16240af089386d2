"""The Python interface: a network that names the action in a video."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from tsm_jax.assemble.weights import load_model
from tsm_jax.data.protocols import protocol_of
from tsm_jax.deploy.artifact import FEATURES, State
from tsm_jax.deploy.engine import Engine, StreamEngine
from tsm_jax.deploy.prediction import Prediction
from tsm_jax.deploy.predictor import Predictor
from tsm_jax.deploy.stream import Stream
from tsm_jax.exporting.program import make_program, make_stream_program
from tsm_jax.models.architecture import CLASSIFIER
from tsm_jax.models.network import build_network
from tsm_jax.models.normalize import normalize
from tsm_jax.weights.model_directory import Model, check_tensors


class Recognizer:
    """A network with its weights and its preprocessing.

    Args:
        model: what was read.
        dtype: of convolutions: `float32`, `bfloat16`, or `auto` as in `config.dtype`.
        source: where it was read from, for messages.
    """

    def __init__(self, model: Model, *, dtype: str = "float32", source: str = "the model"):
        self.model = model
        self.labels = list(model.labels)
        self._source, self._dtype = source, dtype
        self._network = build_network(model.architecture, dtype)
        params, stats = self._network.param_shapes, self._network.batch_stat_shapes
        check_tensors(model.tensors, {**params, **stats}, source)
        self.params = {name: jnp.asarray(model.tensors[name]) for name in params}
        self.batch_stats = {name: jnp.asarray(model.tensors[name]) for name in stats}
        self._forward = jax.jit(self._apply)

    @property
    def num_segments(self) -> int:
        """T, the frames of a clip."""
        return self.model.architecture.num_segments

    def forward(self, video: np.ndarray) -> np.ndarray:
        """Logits of clips.

        Args:
            video: normalised, float32 `[N, T, H, W, 3]`: RGB in [0, 1] less the mean
                (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225).

        Returns:
            float32 `[N, K]`.

        Raises:
            ValueError: the shape is another.
        """
        if video.ndim != 5 or video.shape[1] != self.num_segments or video.shape[4] != 3:
            expected = f"[N, {self.num_segments}, H, W, 3]"
            raise ValueError(f"video has shape {video.shape}: it must be {expected}")
        return np.asarray(self._forward(self.params, self.batch_stats, video))

    def predict(self, path: str, top_k: int = 5) -> list[Prediction]:
        """The most likely classes of a video file, best first, over all views of the protocol.

        Args:
            path: of the file.
            top_k: how many, at most K.

        Raises:
            UnreadableClipError: the video cannot be decoded.
            UserError: the scores are not finite.
        """
        return self.predictor().predict(path, top_k)

    def predictor(self, protocol: str | None = None) -> Predictor:
        """What predicts many videos with this network, by its stored protocol or another one."""
        shape = (self.num_segments, None, None, 3)
        return Predictor(
            Engine("jax", self._dtype, jax.default_backend(), shape, self._run),
            self.labels,
            self.num_segments,
            protocol_of(self.model.preprocessing, protocol),
            lambda: np.asarray(self.params[CLASSIFIER]),
            source=self._source,
            fingerprint=self._fingerprint,
        )

    def stream(self) -> Stream:
        """A stream of frames at its start; each call gives another one, and they never mix.

        Raises:
            UserError: the network was not trained with `shift="past_only"`, so it needs frames from
                the future.
        """
        preprocessing, source = self.model.preprocessing, self._source
        return Stream(
            self._stream_engine, self.labels, self.num_segments, preprocessing, source=source
        )

    @cached_property
    def _stream_engine(self) -> StreamEngine:
        program = make_stream_program(self.model, self._dtype, self._source)
        forward = jax.jit(lambda *inputs: program(*inputs))

        def step(frame: np.ndarray, state: State) -> tuple[np.ndarray, State]:
            logits, *after = forward(frame, *state)  # which stays on the device
            return np.asarray(logits), after

        start = [jnp.zeros(each.shape, each.dtype) for each in program.state]
        return StreamEngine("jax", jax.default_backend(), start, step)

    def _run(self, video: np.ndarray, output: str) -> np.ndarray:
        if output == FEATURES:
            return np.asarray(self._features(video))
        return self.forward(np.asarray(normalize(video)))

    @cached_property
    def _features(self) -> Callable[[np.ndarray], jax.Array]:
        program = make_program(self.model)
        return jax.jit(lambda video: program(video)[1])

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.model.architecture).encode())
        for name, tensor in sorted(self.model.tensors.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor).data)
        return digest.hexdigest()

    def _apply(
        self,
        params: Mapping[str, jax.Array],
        batch_stats: Mapping[str, jax.Array],
        video: jax.Array,
    ) -> jax.Array:
        return self._network.apply(params, batch_stats, video)[0]


def load(
    weights: str,
    *,
    num_segments: int | None = None,
    dtype: str = "float32",
    protocol: str | None = None,
) -> Recognizer:
    """Loads a network to use it.

    Args:
        weights: a model directory; a workdir of a training run (its best checkpoint); a
            `.pdparams` of PaddleVideo; a `.pth`, `.pth.tar` or `.safetensors` of MIT, mmaction2,
            torchvision or timm; or an https address or a zoo name of such a file.
        num_segments: T of a file that does not tell it; 8 for a `.pdparams` if None.
        dtype: of convolutions: `float32`, `bfloat16`, or `auto`.
        protocol: which views of a video `predict` averages, one of `tsm_jax.data.protocols`;
            None for the one that is stored with the weights.

    Raises:
        UserError: nothing usable is there.
    """
    model = load_model(weights, num_segments=num_segments)
    if protocol is not None:
        model = replace(model, preprocessing=replace(model.preprocessing, protocol=protocol))
    return Recognizer(model, dtype=dtype, source=weights)
