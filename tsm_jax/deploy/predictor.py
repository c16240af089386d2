"""Names the action in videos: decoding overlaps with the network.

An exported folder needs neither flax nor anything else of training.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np

from tsm_jax.data.protocols import EvalProtocol
from tsm_jax.deploy.artifact import FEATURES, LOGITS
from tsm_jax.deploy.engine import Engine
from tsm_jax.deploy.prediction import Moment, Prediction, average_views, best_classes, softmax
from tsm_jax.deploy.videos import (
    Frame,
    Video,
    VideoPath,
    are_paths,
    check_lengths,
    is_path,
    local_file,
    read_views,
    take_frames,
    windows,
)
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.host import usable_cores
from tsm_jax.models.architecture import Architecture

if TYPE_CHECKING:
    from tsm_jax.models.summary import Summary

_READ_AHEAD = 1 << 30  # bytes of pixels


class Answer(NamedTuple):
    """What became of one video.

    Attributes:
        path: of the video; `video 3` for an array that was the fourth.
        predictions: best first; empty if it could not be read.
        error: one line why it could not be read, or None.
        clip: the frames of the first view, uint8 `[T, S, S, 3]`, or None.
    """

    path: str
    predictions: list[Prediction]
    error: str | None
    clip: np.ndarray | None


class Embedding(NamedTuple):
    """The features that the classifier sees, averaged over each frame's pixels and crops.

    Attributes:
        clip: float32 `[C]`, the mean over the frames.
        frames: float32 `[T, C]`, in the order of the protocol's frames (those of all its clips in
            time, if it takes several).
    """

    clip: np.ndarray
    frames: np.ndarray


# Of a video: its name; its views, uint8 `[V, T, S, S, 3]`, or why there are none.
_Read = tuple[str, np.ndarray | UnreadableClipError]
# Its name; the first view; what the engine gave for all of them, `[V, ...]`, or why it gave none.
_Scored = tuple[str, np.ndarray | None, np.ndarray | UnreadableClipError]


@dataclass
class Usage:
    """How busy the engine was from the start of its first batch to the end of its last one."""

    clips: int = 0
    engine_seconds: float = 0.0
    wall_seconds: float = 0.0

    @property
    def busy(self) -> float:
        """Share of the time that the engine worked, 0 to 1."""
        return self.engine_seconds / self.wall_seconds if self.wall_seconds else 0.0


class Predictor:
    """A network, its preprocessing and its labels: what `tsm_jax.load` gives.

    Args:
        classifier: gives the classifier's weights `[C, K]`, for activation maps.
        source: where the network came from, for messages.
        fingerprint: gives the SHA-256 of the network.

    Attributes:
        engine: what runs the network: its `name`, `precision` and `device`.
        labels: K class names, in the order of the scores.
        architecture: backbone, shift, classes and frames of the network.
        protocol: which frames and pixels the network sees.
        usage: how busy the engine was in the last call for many videos.
    """

    def __init__(
        self,
        engine: Engine,
        labels: Sequence[str],
        architecture: Architecture,
        protocol: EvalProtocol,
        classifier: Callable[[], np.ndarray],
        *,
        source: str = "the model",
        fingerprint: Callable[[], str] = str,
    ):
        protocol.check_labels(labels)
        self.engine = engine
        self.labels = list(labels)
        self.architecture = architecture
        self.protocol = protocol
        self._classifier = classifier
        self.source = source
        self.fingerprint = fingerprint
        self.usage = Usage()

    @property
    def num_segments(self) -> int:
        """T, the frames of a clip."""
        return self.architecture.num_segments

    @overload
    def predict(
        self, video: VideoPath | np.ndarray | Sequence[Frame], top_k: int = 5
    ) -> list[Prediction]: ...

    @overload
    def predict(self, video: Sequence[VideoPath], top_k: int = 5) -> list[list[Prediction]]: ...

    def predict(
        self, video: Video | Sequence[VideoPath], top_k: int = 5
    ) -> list[Prediction] | list[list[Prediction]]:
        """The most likely classes of a video, best first, over all views of the protocol.

        Args:
            video: a path; an https address; the frames of a whole video as an array uint8
                `[frames, H, W, 3]`, RGB, or as a sequence of uint8 `[H, W, 3]`; or a list of paths,
                which gives a list of answers. Of an array the protocol takes the frames that it
                would take of a file.
            top_k: how many, at most K.

        Raises:
            UnreadableClipError: a video cannot be decoded.
            UserError: an array is no video, or the model's scores are not finite.
        """
        if are_paths(video):
            answers = []
            for _, _, logits in self._outputs(video, LOGITS):
                if isinstance(logits, UnreadableClipError):
                    raise logits
                answers.append(self.best(self._average(logits), top_k))
            return answers
        return self.best(self.logits(self.read(video)), top_k)  # pyright: ignore[reportArgumentType]

    def predict_many(
        self,
        videos: Iterable[Video],
        top_k: int = 5,
        *,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> Iterator[Answer]:
        """Answers in the order of the videos; threads decode ahead while the engine works.

        Videos are taken from the iterable as they are needed, and memory holds those of a few
        batches. An array may be used again once the next one is asked for.

        Args:
            videos: each as for `predict`. One that cannot be read becomes an answer with an error.
            top_k: classes in an answer.
            batch_size: views that the engine gets at once; None for what it likes.
            threads: that decode; None for one per core.

        Raises:
            UserError: an array is no video, or the model's scores are not finite.
        """
        for name, clip, logits in self._outputs(videos, LOGITS, batch_size, threads):
            if isinstance(logits, UnreadableClipError):
                yield Answer(name, [], " ".join(str(logits).split()), None)
            else:
                yield Answer(name, self.best(self._average(logits), top_k), None, clip)

    def embed(self, video: Video) -> Embedding:
        """The features of a video, as for `predict`, before the classifier.

        `clip @ W + b`, with the classifier's weights and biases, are its logits (where the protocol
        averages logits).

        Raises:
            UnreadableClipError: it cannot be decoded.
            UserError: an array is no video, or the features are not finite.
        """
        return self._embedding(self._of_views(self.read(video), FEATURES))

    def embed_many(
        self,
        videos: Iterable[Video],
        *,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> Iterator[tuple[str, Embedding | UnreadableClipError]]:
        """A name and the features of each video, or why it could not be read; as `predict_many`."""
        for name, _, features in self._outputs(videos, FEATURES, batch_size, threads):
            failed = isinstance(features, UnreadableClipError)
            yield name, features if failed else self._embedding(features)

    def timeline(
        self, video: VideoPath, *, window: float = 4.0, step: float | None = None, top_k: int = 5
    ) -> Iterator[Moment]:
        """What happens when: answers for each place of a sliding window.

        Args:
            video: a path or an https address.
            window: seconds, rounded to whole frames; about as long as the clips that the network
                was trained on.
            step: seconds from one window to the next; None for half a window. It is rounded to
                whole T-ths of a window, at least one, so that windows share their frames.
            top_k: classes in an answer.

        Yields:
            `Moment(start, end, predictions, scores)`, as soon as its last frame is decoded. A video
            that is shorter than the window is one window.

        Raises:
            UnreadableClipError: the video cannot be decoded; what came before is valid.
            UserError: the window or the step is not a sensible number, or the video an array.
        """
        step = check_lengths(window, step)
        if not is_path(video):
            raise UserError("an array says nothing of time: give timeline a video file")
        with local_file(video) as path:
            found = windows(path, self.protocol, self.num_segments, window=window, step=step)
            for start, end, views in found:
                logits = self.logits(views)
                yield Moment(start, end, self.best(logits, top_k), softmax(logits))

    def summary(self) -> Summary:
        """Layers, parameters and multiply-adds of the network for one view; printed, a table.

        Raises:
            UserError: flax, which knows the layers, is not installed.
        """
        try:
            from tsm_jax.models.summary import summarize  # here: an exported folder needs no flax
        except ImportError as error:
            raise UserError(f"a summary needs {error.name}: pip install {error.name}") from error
        return summarize(self.architecture, self.protocol.crop_size)

    def read(self, video: Video) -> np.ndarray:
        """The views of a video, uint8 `[V, T, S, S, 3]`; raises as `read_views`."""
        return read_views(video, self.protocol, self.num_segments)

    def logits(self, views: np.ndarray) -> np.ndarray:
        """The logits of a video, float32 `[K]`, from its views, uint8 `[V, T, S, S, 3]`."""
        return self._average(self._of_views(views, LOGITS))

    def best(self, logits: np.ndarray, top_k: int) -> list[Prediction]:
        """The most likely classes, see `best_classes`."""
        return best_classes(logits, self.labels, top_k, self.source)

    def activation_maps(self, clip: np.ndarray, index: int) -> np.ndarray:
        """Where each frame speaks for a class: float32 `[T, h, w]`.

        The mean over pixels and frames, plus the class's bias, is the clip's logit. Of PP-LCNetV2,
        which pools before its last layer, h and w are 1: a frame speaks as a whole.

        Args:
            clip: uint8 `[T, S, S, 3]`, one view.
            index: of the class.

        Reference: Zhou et al., "Learning Deep Features for Discriminative Localization", 2016.
        """
        return self.engine.features(clip[None])[0] @ self._classifier()[:, index]

    def _average(self, logits: np.ndarray) -> np.ndarray:
        return average_views(logits, self.protocol.average_probabilities)

    def _of_views(self, views: np.ndarray, output: str) -> np.ndarray:
        size = self.engine.batch_size
        batches = (views[start : start + size] for start in range(0, len(views), size))
        return np.concatenate([self._run(batch, output) for batch in batches])

    def _run(self, batch: np.ndarray, output: str) -> np.ndarray:
        """Logits `[N, K]`, or features averaged over the pixels, `[N, T, C]`."""
        if output == LOGITS:
            return self.engine.logits(batch)
        return self.engine.features(batch).mean((2, 3))

    def _embedding(self, features: np.ndarray) -> Embedding:
        """From those of all views, `[V, T, C]`: crops of one frame are averaged."""
        if not np.isfinite(features).all():
            raise UserError(f"{self.source} gives features that are NaN or infinite")
        clips, crops = self.protocol.num_clips, self.protocol.num_crops
        frames = features.reshape(clips, crops, *features.shape[1:]).mean(1)
        frames = frames.reshape(-1, features.shape[-1])
        return Embedding(frames.mean(0), frames)

    def _outputs(
        self,
        videos: Iterable[Video],
        output: str,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> Iterator[_Scored]:
        """What the engine gives for the views of each video, in order."""
        size = batch_size or self.engine.batch_size
        usage = self.usage = Usage()
        waiting: deque[_Read] = deque()
        clips: list[np.ndarray] = []
        scored: deque[np.ndarray] = deque()  # of the clips of `waiting`, the oldest first
        first = 0.0

        def compute(batch: list[np.ndarray]) -> None:
            """The last of several batches is filled up, so that one shape is compiled."""
            nonlocal first
            full = np.stack(batch + batch[-1:] * ((size - len(batch)) * bool(usage.clips)))
            start = time.perf_counter()
            scored.extend(self._run(full, output)[: len(batch)])
            end = time.perf_counter()
            first = first if usage.clips else start
            usage.clips += len(batch)
            usage.engine_seconds += end - start
            usage.wall_seconds = end - first

        for name, views in self._read_ahead(videos, threads or usable_cores(), size):
            waiting.append((name, views))
            if isinstance(views, np.ndarray):
                clips.extend(views)
            while len(clips) >= size:
                compute(clips[:size])
                del clips[:size]
            yield from _complete(waiting, scored)
        if clips:
            compute(clips)
        yield from _complete(waiting, scored)

    def _read_ahead(
        self, videos: Iterable[Video], threads: int, batch_size: int
    ) -> Iterator[_Read]:
        """Videos in order; two batches and a video per thread are in memory, or `_READ_AHEAD`."""
        protocol, pending, held = self.protocol, deque[tuple[str, int, Future[np.ndarray]]](), 0
        view_bytes = protocol.num_views * self.num_segments * protocol.crop_size**2 * 3
        ahead = threads + -(-2 * batch_size // protocol.num_views)
        with ThreadPoolExecutor(threads, "decode") as pool:
            try:
                for number, video in enumerate(videos):
                    if is_path(video):
                        name, size = os.fspath(video), view_bytes
                        future = pool.submit(self.read, video)
                    else:
                        name = f"video {number}"
                        frames = take_frames(video, protocol, self.num_segments, name)
                        size = view_bytes + sum(frame.nbytes for frame in frames)
                        future = pool.submit(protocol.views, frames, name)
                    pending.append((name, size, future))
                    held += size
                    while len(pending) >= ahead or (held >= _READ_AHEAD and len(pending) > 1):
                        name, size, future = pending.popleft()
                        held -= size
                        yield name, _views(future)
                while pending:
                    name, _, future = pending.popleft()
                    yield name, _views(future)
            finally:
                for _, _, future in pending:
                    future.cancel()


def _views(future: Future[np.ndarray]) -> np.ndarray | UnreadableClipError:
    try:
        return future.result()
    except UnreadableClipError as error:
        return error


def _complete(waiting: deque[_Read], scored: deque[np.ndarray]) -> Iterator[_Scored]:
    """Takes those from the front that are complete."""
    while waiting:
        name, views = waiting[0]
        if isinstance(views, UnreadableClipError):
            yield name, None, views
        elif len(scored) < len(views):
            return
        else:
            yield name, views[0].copy(), np.stack([scored.popleft() for _ in views])
        waiting.popleft()
