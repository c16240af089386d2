"""Recognizes the actions in videos, decoding some while the network runs on others.

An exported folder needs neither flax nor any other part of training.
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

_READ_AHEAD = 1 << 30  # bytes of pixels held in memory


class Answer(NamedTuple):
    """The answer for one video.

    Attributes:
        path: of the video; `video 3` for the fourth, if it is an array.
        predictions: best first; empty if the video could not be read.
        error: one line that says why the video could not be read, or None.
        clip: the frames of the first view, uint8 `[T, S, S, 3]`, or None.
    """

    path: str
    predictions: list[Prediction]
    error: str | None
    clip: np.ndarray | None


class Embedding(NamedTuple):
    """The input of the classifier, averaged over the pixels and crops of each frame.

    Attributes:
        clip: float32 `[C]`, the mean over the frames.
        frames: float32 `[T, C]`, in the order of the protocol's frames (of all its clips in time,
            if it has several).
    """

    clip: np.ndarray
    frames: np.ndarray


# The name of a video; its views, uint8 `[V, T, S, S, 3]`, or the error.
_Read = tuple[str, np.ndarray | UnreadableClipError]
# The name; the first view; the engine's output for all views, `[V, ...]`, or the error.
_Scored = tuple[str, np.ndarray | None, np.ndarray | UnreadableClipError]


@dataclass
class Usage:
    """How busy the engine was, from the start of its first batch to the end of its last."""

    clips: int = 0
    engine_seconds: float = 0.0
    wall_seconds: float = 0.0

    @property
    def busy(self) -> float:
        """Share of the time that the engine was working, 0 to 1."""
        return self.engine_seconds / self.wall_seconds if self.wall_seconds else 0.0


class Predictor:
    """A network with its preprocessing and labels, as returned by `tsm_jax.load`.

    Args:
        classifier: returns the classifier's weights `[C, K]`, for activation maps.
        source: where the network came from, for messages.
        fingerprint: returns the SHA-256 of the network.

    Attributes:
        engine: runs the network; has a `name`, a `precision` and a `device`.
        labels: K class names, in the order of the scores.
        architecture: backbone, shift, classes and frames of the network.
        protocol: determines which frames and pixels the network sees.
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
        """Returns the most likely classes of a video, best first, over all views of the protocol.

        Args:
            video: a path; an https address; the frames of a whole video as an array, uint8
                `[frames, H, W, 3]`, RGB, or as a sequence of uint8 `[H, W, 3]`; or a list of paths,
                for a list of answers. The protocol chooses the same frames from an array as from a
                file.
            top_k: number of classes, at most K.

        Raises:
            UnreadableClipError: a video cannot be decoded.
            UserError: an array is not a video, or the model's scores are not finite.
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
        """Yields answers in the order of the videos; threads decode ahead while the engine works.

        Videos are taken from the iterable as needed, so that memory holds only a few batches. The
        iterable may reuse the memory of an array once it is asked for the next one.

        Args:
            videos: each as for `predict`. One that cannot be read becomes an answer with an error.
            top_k: number of classes per answer.
            batch_size: views per batch; None for the engine's preference.
            threads: decoding threads; None for one per core.

        Raises:
            UserError: an array is not a video, or the model's scores are not finite.
        """
        for name, clip, logits in self._outputs(videos, LOGITS, batch_size, threads):
            if isinstance(logits, UnreadableClipError):
                yield Answer(name, [], " ".join(str(logits).split()), None)
            else:
                yield Answer(name, self.best(self._average(logits), top_k), None, clip)

    def embed(self, video: Video) -> Embedding:
        """Returns the features of a video, the input of the classifier.

        `clip @ W + b`, with the classifier's weights and biases, equals the video's logits (if the
        protocol averages logits).

        Args:
            video: as for `predict`, but a single one.

        Raises:
            UnreadableClipError: the video cannot be decoded.
            UserError: an array is not a video, or the features are not finite.
        """
        return self._embedding(self._of_views(self.read(video), FEATURES))

    def embed_many(
        self,
        videos: Iterable[Video],
        *,
        batch_size: int | None = None,
        threads: int | None = None,
    ) -> Iterator[tuple[str, Embedding | UnreadableClipError]]:
        """Yields the name and the features (or the error) of each video; see `predict_many`."""
        for name, _, features in self._outputs(videos, FEATURES, batch_size, threads):
            failed = isinstance(features, UnreadableClipError)
            yield name, features if failed else self._embedding(features)

    def timeline(
        self, video: VideoPath, *, window: float = 4.0, step: float | None = None, top_k: int = 5
    ) -> Iterator[Moment]:
        """Yields an answer for each position of a sliding window.

        Args:
            video: a path or an https address.
            window: length in seconds, rounded to whole frames; should be about the length of the
                clips that the network was trained on.
            step: seconds from one window to the next; None for half a window. It is rounded to a
                multiple of 1 / T of the window, at least one, so that windows share frames.
            top_k: number of classes per answer.

        Yields:
            `Moment(start, end, predictions, scores)`, as soon as its last frame is decoded. A video
            shorter than the window is a single window.

        Raises:
            UnreadableClipError: the video cannot be decoded; earlier answers remain valid.
            UserError: the window or step is out of range, or the video is an array.
        """
        step = check_lengths(window, step)
        if not is_path(video):
            raise UserError("an array has no frame rate: pass a video file to timeline")
        with local_file(video) as path:
            found = windows(path, self.protocol, self.num_segments, window=window, step=step)
            for start, end, views in found:
                logits = self.logits(views)
                yield Moment(start, end, self.best(logits, top_k), softmax(logits))

    def summary(self) -> Summary:
        """Returns a printable table of the layers, parameters and multiply-adds for one view.

        Raises:
            UserError: flax, which defines the layers, is not installed.
        """
        try:
            from tsm_jax.models.summary import summarize  # exported folders need no flax
        except ImportError as error:
            raise UserError(f"a summary needs {error.name}: pip install {error.name}") from error
        return summarize(self.architecture, self.protocol.crop_size)

    def read(self, video: Video) -> np.ndarray:
        """Returns the views of a video, uint8 `[V, T, S, S, 3]`; raises as `read_views`."""
        return read_views(video, self.protocol, self.num_segments)

    def logits(self, views: np.ndarray) -> np.ndarray:
        """Returns the logits of a video, float32 `[K]`, for its views, uint8 `[V, T, S, S, 3]`."""
        return self._average(self._of_views(views, LOGITS))

    def best(self, logits: np.ndarray, top_k: int) -> list[Prediction]:
        """Returns the most likely classes, see `best_classes`."""
        return best_classes(logits, self.labels, top_k, self.source)

    def activation_maps(self, clip: np.ndarray, index: int) -> np.ndarray:
        """Returns the evidence for a class at each place of each frame, float32 `[T, h, w]`.

        The mean over places and frames, plus the class's bias, is the clip's logit. For PP-LCNetV2,
        which pools before its last layer, h and w are 1: a frame has a single value.

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
        """Returns logits `[N, K]`, or features averaged over the pixels, `[N, T, C]`."""
        if output == LOGITS:
            return self.engine.logits(batch)
        return self.engine.features(batch).mean((2, 3))

    def _embedding(self, features: np.ndarray) -> Embedding:
        """Averages the features of all views, `[V, T, C]`, over the crops of each frame."""
        if not np.isfinite(features).all():
            raise UserError(f"{self.source} produces features that are NaN or infinite")
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
        """Yields the engine's output for the views of each video, in order."""
        size = batch_size or self.engine.batch_size
        usage = self.usage = Usage()
        waiting: deque[_Read] = deque()
        clips: list[np.ndarray] = []
        scored: deque[np.ndarray] = deque()  # outputs for the clips of `waiting`, oldest first
        first = 0.0

        def compute(batch: list[np.ndarray]) -> None:
            """Runs a batch; the last of several is padded, so that only one shape is compiled."""
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
        """Yields videos in order; holds two batches and a video per thread, or `_READ_AHEAD`."""
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
    """Removes complete videos from the front and yields them."""
    while waiting:
        name, views = waiting[0]
        if isinstance(views, UnreadableClipError):
            yield name, None, views
        elif len(scored) < len(views):
            return
        else:
            yield name, views[0].copy(), np.stack([scored.popleft() for _ in views])
        waiting.popleft()
