"""A network that follows a stream frame by frame.

from tsm_jax import load_stream
stream = load_stream("inference/live")
for frame in frames:
    logits = stream.push(frame)

The logits are the network's output for a frame, given its memory of earlier frames. A `Smoother`
turns them into an answer to show.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from tsm_jax.data.protocols import EvalProtocol, Preprocessing, protocol_of
from tsm_jax.data.transforms import one_crop
from tsm_jax.deploy.artifact import STREAM, read_artifact
from tsm_jax.deploy.engine import StreamEngine, open_stream_engine
from tsm_jax.deploy.prediction import Prediction, best_classes, softmax

# The share of the network's frame rate that a stream should have; number of frames to judge by.
_ENOUGH, JUDGED_BY = 0.8, 20


class Stream:
    """One stream of frames, for one thread at a time.

    `new` creates further, independent streams of the same network.

    Attributes:
        labels: K class names.
        num_segments: T, the frames of a clip in training.
        frame_rate: frames per second that the network saw in training; 0 if not known.
        source: where the network came from, for messages.
    """

    def __init__(
        self,
        engine: StreamEngine,
        labels: Sequence[str],
        num_segments: int,
        preprocessing: Preprocessing,
        *,
        source: str = "the model",
    ):
        self.engine = engine
        self.labels = list(labels)
        self.num_segments = num_segments
        self.frame_rate = float(preprocessing.frame_rate)
        self.source = source
        self._view = one_view(protocol_of(preprocessing))
        self.reset()

    @classmethod
    def load(cls, folder: str, *, engine: str = "auto") -> Stream:
        """Opens a folder written by `export --streaming` (`tsm_jax.load_stream` opens any weights).

        Raises:
            UserError: the folder is damaged or was exported for clips, or the engine cannot run it.
        """
        artifact = read_artifact(folder, STREAM)
        return cls(
            open_stream_engine(artifact, engine),
            artifact.labels,
            artifact.num_segments,
            artifact.preprocessing,
            source=artifact.folder,
        )

    def push(self, frame: np.ndarray) -> np.ndarray:
        """Computes the logits of the next frame.

        Args:
            frame: uint8 `[H, W, 3]`, RGB, of any size; it is scaled by its short side and cropped
                to its centre, as the weights require. The network expects `frame_rate` frames per
                second.

        Returns:
            float32 `[K]`. The mean over the first T frames equals the network's logits for a clip
            of these frames.

        Raises:
            ValueError: the frame has another shape or dtype.
        """
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise ValueError(
                f"the frame is {frame.dtype} {list(frame.shape)}: it must be uint8 [H, W, 3]"
            )
        pixels = np.ascontiguousarray(self._view.views([frame])[0])  # [1, S, S, 3]
        logits, self._state = self.engine.step(pixels, self._state)
        return logits[0]

    def reset(self) -> None:
        """Forgets all frames: the next one is the first."""
        self._state = self.engine.start

    def new(self) -> Stream:
        """Returns another stream of the same network, at its start."""
        other = copy.copy(self)
        other.reset()
        return other

    def smoother(self, *, patience: int = 2) -> Smoother:
        """Returns a `Smoother` that averages the last T frames, as in training."""
        return Smoother(
            self.labels, frames=self.num_segments, patience=patience, source=self.source
        )


def one_view(protocol: EvalProtocol) -> EvalProtocol:
    """Returns the protocol with a single clip and only the centre crop."""
    return replace(protocol, num_clips=1, crops=one_crop, num_crops=1)


def too_slow(times: Sequence[float], rate: float) -> float | None:
    """Returns the frames per second of a stream if motion looks too fast in it, otherwise None.

    Args:
        times: of the last `JUDGED_BY` frames, in seconds; with fewer, the result is None.
        rate: frames per second in training.
    """
    if len(times) < JUDGED_BY:
        return None
    found = (len(times) - 1) / max(times[-1] - times[0], 1e-9)
    return found if found < _ENOUGH * rate else None


class Shown(NamedTuple):
    """What to show after a frame."""

    answer: Prediction  # the class to show, with its current score
    scores: np.ndarray  # softmax of the mean logits, float32 `[K]`
    changed: bool  # whether the previous frame had another answer, or there was none
    frame: Prediction  # the answer from this frame alone

    def values(self, time: float, dropped: int) -> dict[str, Any]:
        """Returns JSON values.

        Args:
            time: of the frame, in seconds from the first one.
            dropped: number of frames dropped so far.
        """
        own = self.frame
        return {
            "time": round(time, 3),
            "label": self.answer.label,
            "class": self.answer.index,
            "score": self.answer.score,
            "changed": self.changed,
            "frame": {"label": own.label, "class": own.index, "score": own.score},
            "dropped": dropped,
        }


class Smoother:
    """Turns logits into an answer that does not flicker.

    The mean of the logits over the last frames determines the leading class. The answer changes
    once another class has led for `patience` frames in a row; with 1 it is always the leader. The
    first frame's leader is shown immediately.

    Args:
        labels: K class names.
        frames: number of frames in the mean; the network was trained with a mean over T.
        patience: at least 1.
        source: where the network came from, for messages.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        frames: int,
        patience: int = 2,
        source: str = "the model",
    ):
        self._labels, self._source = labels, source
        self._logits: deque[np.ndarray] = deque(maxlen=frames)
        self._leaders: deque[int] = deque(maxlen=patience)
        self._answer: int | None = None

    def update(self, logits: np.ndarray) -> Shown:
        """Returns what to show after a frame with these logits, float32 `[K]`.

        Raises:
            UserError: a logit is NaN or infinite.
        """
        (own,) = best_classes(logits, self._labels, 1, self._source)
        self._logits.append(logits)
        mean = np.mean(self._logits, axis=0)
        (leader,) = best_classes(mean, self._labels, 1, self._source)
        self._leaders.append(leader.index)
        before, answer = self._answer, self._answer
        settled = len(self._leaders) == self._leaders.maxlen and len(set(self._leaders)) == 1
        if answer is None or settled:
            answer = self._answer = leader.index
        scores = softmax(mean)
        shown = Prediction(answer, self._labels[answer], float(scores[answer]))
        return Shown(shown, scores, answer != before, own)

    def reset(self) -> None:
        """Forgets all frames."""
        self._logits.clear()
        self._leaders.clear()
        self._answer = None
