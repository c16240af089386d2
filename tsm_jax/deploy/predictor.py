"""Names the action in many videos: decoding overlaps with the network.

from tsm_jax import Predictor
predictor = Predictor.load("inference/TSM")
for answer in predictor.predict_many(["a.mp4", "b.avi"]):
    print(answer.path, answer.predictions or answer.error)

An exported folder needs neither flax nor anything else of training.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tsm_jax.data.decode import decode_frames
from tsm_jax.data.protocols import EvalProtocol, eval_protocol
from tsm_jax.deploy.artifact import Artifact, is_artifact, read_artifact
from tsm_jax.deploy.engine import Engine, check_names, open_engine
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.prediction import Prediction, best_classes
from tsm_jax.weights.model_directory import Preprocessing


class Answer(NamedTuple):
    """What became of one video.

    Attributes:
        path: of the video.
        predictions: best first; empty if it could not be read.
        error: one line why it could not be read, or None.
        clip: the frames that the network saw, uint8 `[T, S, S, 3]`, or None.
    """

    path: str
    predictions: list[Prediction]
    error: str | None
    clip: np.ndarray | None


@dataclass
class Load:
    """How busy the engine was since its first batch.

    Attributes:
        clips: that went through it.
        engine_seconds: inside the engine.
        wall_seconds: from the start of the first batch to the end of the last one.
    """

    clips: int = 0
    engine_seconds: float = 0.0
    wall_seconds: float = 0.0
    _start: float | None = field(default=None, repr=False)

    def add(self, start: float, end: float, clips: int) -> None:
        """Counts a batch by its `time.perf_counter()`."""
        self._start = start if self._start is None else self._start
        self.clips += clips
        self.engine_seconds += end - start
        self.wall_seconds = end - self._start

    @property
    def busy(self) -> float:
        """Share of the time that the engine worked, 0 to 1."""
        return self.engine_seconds / self.wall_seconds if self.wall_seconds else 0.0


class Predictor:
    """A network, its preprocessing and its labels.

    Args:
        engine: runs the network.
        labels: K class names.
        num_segments: T.
        protocol: which frames and pixels the network sees.
        classifier: gives the classifier's weights `[C, K]`, for activation maps.

    Attributes:
        usage: of the engine in the last `predict_many`.
    """

    def __init__(
        self,
        engine: Engine,
        labels: Sequence[str],
        num_segments: int,
        protocol: EvalProtocol,
        classifier: Callable[[], np.ndarray],
    ):
        self.engine = engine
        self.labels = list(labels)
        self.num_segments = num_segments
        self.protocol = protocol
        self._classifier = classifier
        self.usage = Load()

    @classmethod
    def load(
        cls,
        model: str,
        *,
        engine: str = "auto",
        precision: str = "float32",
        num_segments: int | None = None,
        protocol: str | None = None,
    ) -> Predictor:
        """Opens a model.

        Args:
            model: an exported folder; or, with the whole package installed, anything that
                `tsm_jax.load` takes, which then runs in jax.
            engine: `auto`, `jax`, `onnxruntime` or `openvino`.
            precision: `float32`, `bfloat16` or `int8`.
            num_segments: T of a `.pdparams`, which does not tell it.
            protocol: `test` or `paddle_predict`; None for the one stored with the weights.

        Raises:
            UserError: nothing usable is there, or it cannot run this way.
        """
        check_names(engine, precision)
        if is_artifact(model):
            artifact = read_artifact(model)
            return cls._of_artifact(artifact, engine, precision, num_segments, protocol)
        return cls._of_weights(model, engine, precision, num_segments, protocol)

    @classmethod
    def _of_artifact(
        cls,
        artifact: Artifact,
        engine: str,
        precision: str,
        num_segments: int | None,
        protocol: str | None,
    ) -> Predictor:
        if num_segments not in (None, artifact.num_segments):
            raise UserError(
                f"{artifact.folder} was exported for {artifact.num_segments} segments, not"
                f" {num_segments}"
            )
        return cls(
            open_engine(artifact, engine, precision),
            artifact.labels,
            artifact.num_segments,
            _protocol(artifact.preprocessing, protocol),
            artifact.classifier,
        )

    @classmethod
    def _of_weights(
        cls,
        model: str,
        engine: str,
        precision: str,
        num_segments: int | None,
        protocol: str | None,
    ) -> Predictor:
        if engine not in ("auto", "jax") or precision == "int8":
            raise UserError(
                f"{model} is no exported folder: {engine if precision != 'int8' else precision}"
                " runs what python -m tsm_jax.export writes"
            )
        try:
            from tsm_jax.deploy.recognizer_engine import RecognizerEngine
            from tsm_jax.recognizer import load
        except ImportError as error:
            raise UserError(
                f"{model} is no exported folder, and other weights need the whole of tsm_jax"
                f" ({error.name} is missing): export them first, python -m tsm_jax.export"
            ) from error
        recognizer = load(model, num_segments=num_segments, dtype=precision)
        return cls(
            RecognizerEngine(recognizer, precision),
            recognizer.labels,
            recognizer.num_segments,
            _protocol(recognizer.model.preprocessing, protocol),
            lambda: np.asarray(recognizer.params["head.fc.kernel"]),
        )

    def read(self, path: str) -> np.ndarray:
        """The clip of a video, uint8 `[T, S, S, 3]`.

        Raises:
            UnreadableClipError: it cannot be decoded.
        """

        def choose(num_frames: int) -> np.ndarray:
            return self.protocol.choose_frames(num_frames, self.num_segments)

        return self.protocol.transform(decode_frames(path, choose))

    def predict(self, path: str, top_k: int = 5) -> list[Prediction]:
        """The most likely classes of a video, best first.

        Raises:
            UnreadableClipError: it cannot be decoded.
        """
        logits = self.engine.logits(self.read(path)[None])
        return best_classes(logits[0], self.labels, top_k)

    def predict_many(
        self,
        paths: Iterable[str],
        top_k: int = 5,
        *,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> Iterator[Answer]:
        """Answers in the order of the videos; threads decode ahead while the engine works.

        Args:
            paths: videos. One that cannot be read becomes an answer with an error.
            top_k: classes in an answer.
            batch_size: clips that the engine gets at once; None for what it likes.
            threads: that decode; None for one per core.
        """
        batch_size = batch_size or self.engine.batch_size
        self.usage = Load()
        waiting: list[tuple[str, np.ndarray | UnreadableClipError]] = []
        for path, clip in self._read_ahead(paths, threads or os.cpu_count() or 1, batch_size):
            waiting.append((path, clip))
            if sum(isinstance(clip, np.ndarray) for _, clip in waiting) == batch_size:
                yield from self._answer(waiting, top_k, batch_size)
                waiting = []
        yield from self._answer(waiting, top_k, batch_size)

    def activation_maps(self, clip: np.ndarray, index: int) -> np.ndarray:
        """Where each frame speaks for a class: float32 `[T, h, w]`.

        The mean over pixels and frames, plus the class's bias, is its logit.

        Args:
            clip: uint8 `[T, S, S, 3]`.
            index: of the class.

        Reference: Zhou et al., "Learning Deep Features for Discriminative Localization", 2016.
        """
        return self.engine.features(clip[None])[0] @ self._classifier()[:, index]

    def _read_ahead(
        self, paths: Iterable[str], threads: int, batch_size: int
    ) -> Iterator[tuple[str, np.ndarray | UnreadableClipError]]:
        """Clips in order; at most two batches and one clip a thread are in memory."""
        pending: deque[tuple[str, Future[np.ndarray]]] = deque()
        with ThreadPoolExecutor(threads, "decode") as pool:
            try:
                for path in paths:
                    pending.append((path, pool.submit(self.read, path)))
                    if len(pending) >= 2 * batch_size + threads:
                        yield _result(*pending.popleft())
                while pending:
                    yield _result(*pending.popleft())
            finally:
                for _, future in pending:
                    future.cancel()

    def _answer(
        self,
        waiting: Sequence[tuple[str, np.ndarray | UnreadableClipError]],
        top_k: int,
        batch_size: int,
    ) -> Iterator[Answer]:
        clips = [clip for _, clip in waiting if isinstance(clip, np.ndarray)]
        logits = iter(self._logits(clips, batch_size))
        for path, clip in waiting:
            if isinstance(clip, np.ndarray):
                yield Answer(path, best_classes(next(logits), self.labels, top_k), None, clip)
            else:
                yield Answer(path, [], " ".join(str(clip).split()), None)

    def _logits(self, clips: list[np.ndarray], batch_size: int) -> np.ndarray:
        """The last batch is filled up, so that one shape is compiled."""
        if not clips:
            return np.zeros((0, len(self.labels)), np.float32)
        batch = np.stack(clips + clips[-1:] * (batch_size - len(clips)))
        start = time.perf_counter()
        logits = self.engine.logits(batch)
        self.usage.add(start, time.perf_counter(), len(clips))
        return logits[: len(clips)]


def _result(path: str, future: Future[np.ndarray]) -> tuple[str, np.ndarray | UnreadableClipError]:
    try:
        return path, future.result()
    except UnreadableClipError as error:
        return path, error


def _protocol(preprocessing: Preprocessing, name: str | None) -> EvalProtocol:
    return eval_protocol(
        name or preprocessing.protocol,
        short_side=preprocessing.short_side,
        crop_size=preprocessing.crop_size,
    )
