"""The Python interface: a network that names the action in a video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from tsm_jax.assemble.weights import load_model
from tsm_jax.data.decode import decode_frames
from tsm_jax.data.protocols import protocol_of
from tsm_jax.deploy.engine import ClipShape, check_video
from tsm_jax.deploy.prediction import Prediction, average_views, best_classes
from tsm_jax.exporting.program import make_program
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
        self._source = source
        self._network = build_network(model.architecture, dtype)
        self._protocol = protocol_of(model.preprocessing)
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

        def choose(num_frames: int) -> np.ndarray:
            return self._protocol.choose_frames(num_frames, self.num_segments)

        views = self._protocol.views(decode_frames(path, choose), path)
        # One at a time: there may be a hundred.
        clips = (np.asarray(normalize(view[None])) for view in views)
        logits = np.concatenate([self.forward(clip) for clip in clips])
        logits = average_views(logits, self._protocol.average_probabilities)
        return best_classes(logits, self.labels, top_k, self._source)

    def _apply(
        self,
        params: Mapping[str, jax.Array],
        batch_stats: Mapping[str, jax.Array],
        video: jax.Array,
    ) -> jax.Array:
        return self._network.apply(params, batch_stats, video)[0]


class RecognizerEngine:
    """A recognizer behind the interface of an engine."""

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
        return self._recognizer.forward(np.asarray(normalize(video)))

    def features(self, video: np.ndarray) -> np.ndarray:
        if self._forward is None:
            program = make_program(self._recognizer.model)
            self._forward = jax.jit(lambda video: program(video)[1])
        return np.asarray(self._forward(video))


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
            `.pdparams` of PaddleVideo; or an https address or a zoo name of one.
        num_segments: T of a `.pdparams`, which does not tell it; 8 if None.
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
