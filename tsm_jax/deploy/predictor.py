"""Names the action in many videos: decoding overlaps with the network.

from tsm_jax import Predictor
predictor = Predictor.load("inference/TSM")
for answer in predictor.predict_many(["a.mp4", "b.avi"]):
    print(answer.path, answer.predictions or answer.error)

An exported folder needs neither flax nor anything else of training.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tsm_jax.data.protocols import PROTOCOLS, EvalProtocol, protocol_of
from tsm_jax.deploy.artifact import Artifact, read_artifact
from tsm_jax.deploy.engine import FILES, Engine, check_names, open_engine
from tsm_jax.deploy.prediction import Prediction, average_views, best_classes, read_views
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.host import usable_cores

_READ_AHEAD = 1 << 30  # bytes of pixels


class Answer(NamedTuple):
    """What became of one video.

    Attributes:
        predictions: best first; empty if it could not be read.
        error: one line why it could not be read, or None.
        clip: the frames of the first view, uint8 `[T, S, S, 3]`, or None.
    """

    path: str
    predictions: list[Prediction]
    error: str | None
    clip: np.ndarray | None


# A video's path, and its views, uint8 `[V, T, S, S, 3]`, or why they cannot be decoded.
_Read = tuple[str, np.ndarray | UnreadableClipError]


@dataclass
class Usage:
    """How busy the engine was from the start of its first batch to the end of its last one."""

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
        source: where the network came from, for messages.
        fingerprint: gives the SHA-256 of the network.

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
        *,
        source: str = "the model",
        fingerprint: Callable[[], str] = str,
    ):
        protocol.check_labels(labels)
        self.engine = engine
        self.labels = list(labels)
        self.num_segments = num_segments
        self.protocol = protocol
        self._classifier = classifier
        self.source = source
        self.fingerprint = fingerprint
        self.usage = Usage()

    @classmethod
    def load(
        cls,
        folder: str,
        *,
        engine: str = "auto",
        precision: str = "float32",
        num_segments: int | None = None,
        protocol: str | None = None,
    ) -> Predictor:
        """Opens what `export` wrote (`tsm_jax.load_predictor` opens any weights).

        Args:
            folder: exported.
            engine, precision: as for `open_engine`.
            num_segments: T, to be checked.
            protocol: which views of a video are averaged, one of `tsm_jax.data.protocols`; None
                for the one stored with the weights.

        Raises:
            UserError: the folder is damaged, or it cannot run this way.
        """
        check_names(engine, precision)
        artifact = read_artifact(folder)
        if num_segments not in (None, artifact.num_segments):
            raise UserError(
                f"{artifact.folder} was exported for {artifact.num_segments} segments, not"
                f" {num_segments}"
            )
        chosen = _fitting_protocol(artifact, protocol)
        opened = open_engine(artifact, engine, precision)
        return cls(
            opened,
            artifact.labels,
            artifact.num_segments,
            chosen,
            artifact.classifier,
            source=artifact.folder,
            fingerprint=lambda: artifact.hashes[FILES[opened.name, precision]],
        )

    def read(self, path: str) -> np.ndarray:
        """The views of a video, see `read_views`."""
        return read_views(path, self.protocol, self.num_segments)

    def logits(self, views: np.ndarray) -> np.ndarray:
        """The logits of a video, float32 `[K]`, from its views, uint8 `[V, T, S, S, 3]`."""
        size = self.engine.batch_size
        batches = (views[start : start + size] for start in range(0, len(views), size))
        logits = np.concatenate([self.engine.logits(batch) for batch in batches])
        return average_views(logits, self.protocol.average_probabilities)

    def best(self, logits: np.ndarray, top_k: int) -> list[Prediction]:
        """The most likely classes, see `best_classes`."""
        return best_classes(logits, self.labels, top_k, self.source)

    def predict(self, path: str, top_k: int = 5) -> list[Prediction]:
        """The most likely classes of a video, best first.

        Raises:
            UnreadableClipError: it cannot be decoded.
            UserError: the model's scores are not finite.
        """
        return self.best(self.logits(self.read(path)), top_k)

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
            batch_size: views that the engine gets at once; None for what it likes.
            threads: that decode; None for one per core.

        Raises:
            UserError: the model's scores are not finite.
        """
        size = batch_size or self.engine.batch_size
        self.usage = Usage()
        waiting: deque[_Read] = deque()
        clips: list[np.ndarray] = []
        scored: deque[np.ndarray] = deque()  # logits of the clips of `waiting`, the oldest first
        for path, views in self._read_ahead(paths, threads or usable_cores(), size):
            waiting.append((path, views))
            if isinstance(views, np.ndarray):
                clips.extend(views)
            while len(clips) >= size:
                scored.extend(self._run(clips[:size], size))
                del clips[:size]
            yield from self._answers(waiting, scored, top_k)
        if clips:
            scored.extend(self._run(clips, size))
        yield from self._answers(waiting, scored, top_k)

    def activation_maps(self, clip: np.ndarray, index: int) -> np.ndarray:
        """Where each frame speaks for a class: float32 `[T, h, w]`.

        The mean over pixels and frames, plus the class's bias, is the clip's logit.

        Args:
            clip: uint8 `[T, S, S, 3]`, one view.
            index: of the class.

        Reference: Zhou et al., "Learning Deep Features for Discriminative Localization", 2016.
        """
        return self.engine.features(clip[None])[0] @ self._classifier()[:, index]

    def _read_ahead(self, paths: Iterable[str], threads: int, batch_size: int) -> Iterator[_Read]:
        """Videos in order; two batches and a video per thread are in memory, or `_READ_AHEAD`."""
        protocol, pending = self.protocol, deque[tuple[str, Future[np.ndarray]]]()
        video_bytes = protocol.num_views * self.num_segments * protocol.crop_size**2 * 3
        ahead = threads + -(-2 * batch_size // protocol.num_views)
        ahead = min(ahead, max(2, _READ_AHEAD // video_bytes))
        with ThreadPoolExecutor(threads, "decode") as pool:
            try:
                for path in paths:
                    pending.append((path, pool.submit(self.read, path)))
                    if len(pending) >= ahead:
                        yield _result(*pending.popleft())
                while pending:
                    yield _result(*pending.popleft())
            finally:
                for _, future in pending:
                    future.cancel()

    def _answers(
        self, waiting: deque[_Read], scored: deque[np.ndarray], top_k: int
    ) -> Iterator[Answer]:
        """Takes those from the front that are complete."""
        while waiting:
            path, views = waiting[0]
            if isinstance(views, UnreadableClipError):
                yield Answer(path, [], " ".join(str(views).split()), None)
            elif len(scored) < len(views):
                return
            else:
                logits = np.stack([scored.popleft() for _ in views])
                logits = average_views(logits, self.protocol.average_probabilities)
                yield Answer(path, self.best(logits, top_k), None, views[0].copy())
            waiting.popleft()

    def _run(self, clips: list[np.ndarray], batch_size: int) -> np.ndarray:
        """Logits `[len(clips), K]`; the last of several batches is filled up, so that one shape is
        compiled."""
        batch = np.stack(clips + clips[-1:] * ((batch_size - len(clips)) * bool(self.usage.clips)))
        start = time.perf_counter()
        logits = self.engine.logits(batch)
        self.usage.add(start, time.perf_counter(), len(clips))
        return logits[: len(clips)]


def _result(path: str, future: Future[np.ndarray]) -> _Read:
    try:
        return path, future.result()
    except UnreadableClipError as error:
        return path, error


def _fitting_protocol(artifact: Artifact, name: str | None) -> EvalProtocol:
    """The protocol of that name, None for the stored one.

    Raises:
        UserError: there is none, or its views are not of the size that the graphs take.
    """
    protocol, size = protocol_of(artifact.preprocessing, name), artifact.clip_shape[1]
    if protocol.crop_size == size:
        return protocol
    described = [protocol_of(artifact.preprocessing, other) for other in PROTOCOLS]
    fitting = [other.name for other in described if other.crop_size == size]
    raise UserError(
        f"the protocol {protocol.name} shows pictures of {protocol.crop_size} px, but the exported"
        f" graph takes {size} px: choose --protocol {', '.join(fitting)}; or give --model the"
        " weights that were exported, which take any size"
    )
