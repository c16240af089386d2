"""The results of an evaluation, clip by clip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tsm_jax import accuracy
from tsm_jax.data.sources import EvalClips
from tsm_jax.deploy.prediction import softmax
from tsm_jax.errors import UserError
from tsm_jax.weights.model_directory import Model


@dataclass(frozen=True)
class Evaluation:
    """The answers of a model for N clips, in the order of the list.

    Attributes:
        metrics: from `training.steps.evaluate`.
        weights: where the model was read from.
        clips: the N clips, for reading them again.
        average: what was averaged over the views of a clip: `logits` or `probabilities`.
        dtype: of the convolutions.
        class_names: K names.
        labels: true classes, int32 `[N]`.
        logits: averaged over views, float32 `[N, K]`.
        ranks: number of other classes that score at least as high as the true one, int32 `[N]`;
            0 for a correct answer.
        right_after: whether the answer is correct after 1, 2, ..., T frames, bool `[N, T]`; None
            for a network that needs all frames at once.
    """

    metrics: dict[str, float]
    model: Model
    weights: str
    list_path: str
    clips: EvalClips
    average: str
    dtype: str
    class_names: list[str]
    labels: np.ndarray
    logits: np.ndarray
    ranks: np.ndarray
    right_after: np.ndarray | None = None

    def summary(self) -> str:
        """Returns one line with the metrics and what was evaluated."""
        metrics, protocol = self.metrics, self.clips.protocol
        averaged = f", mean of {self.average}" if protocol.num_views > 1 else ""
        intervals = accuracy.intervals(metrics).items()
        ranges = (f"{name[:4]} {low:.5f} to {high:.5f}" for name, (low, high) in intervals)
        return (
            f"{self.weights}: {accuracy.in_words(metrics)}"
            f"  loss {metrics['loss']:.5f}  on {metrics['count']} clips of {self.list_path}"
            f" ({protocol.name}: views {protocol.num_views}{averaged}), 95 % intervals:"
            f" {', '.join(ranges)}"
        )

    @property
    def warning(self) -> str:
        """Why top-1 means less than it seems, on one line; empty if there is no known reason."""
        return accuracy.warning(self.metrics, self.class_names)

    @cached_property
    def names(self) -> list[str]:
        """Paths of the clips."""
        return [self.clips.source.name(i) for i in range(len(self.labels))]

    @cached_property
    def short_names(self) -> list[str]:
        """Paths of the clips without the directories of this machine, as in a report."""
        return without_directory(self.names)

    @cached_property
    def scores(self) -> np.ndarray:
        """Softmax probabilities, float32 `[N, K]`.

        Raises:
            UserError: the logits of a clip are not finite.
        """
        finite = np.isfinite(self.logits).all(1)
        if not finite.all():
            raise UserError(
                f"{self.weights}: the scores of {self.names[int(np.argmin(finite))]} are not"
                " finite: the weights are damaged, or too large for config.dtype"
            )
        return softmax(self.logits)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The best class, int `[N]`; in a tie with the true class, the other one, as in top-1."""
        others = self.logits.copy()
        others[np.arange(len(self.labels)), self.labels] = -np.inf
        return np.where(self.correct, self.labels, others.argmax(1))

    @property
    def correct(self) -> np.ndarray:
        """Whether the best class is the true one, bool `[N]`."""
        return self.ranks == 0

    @property
    def confidence(self) -> np.ndarray:
        """Score of the predicted class, float32 `[N]`."""
        return self.scores[np.arange(len(self.labels)), self.predicted]

    def best(self, clip: int, count: int) -> list[int]:
        """Returns the `count` best classes of a clip (at most K), the predicted one first."""
        order = np.argsort(-self.scores[clip], kind="stable")
        first = self.predicted[clip]
        return [int(k) for k in [first, *order[order != first]][:count]]

    def confident_mistakes(self, most: int) -> list[int]:
        """Returns up to `most` clips with wrong answers, the most confident first."""
        wrong = np.flatnonzero(~self.correct)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:most].tolist()

    def hardest(self, most: int) -> list[int]:
        """Returns the clips whose true class scores lowest, lowest first, whether it won or not."""
        own = self.scores[np.arange(len(self.labels)), self.labels]
        return np.argsort(own, kind="stable")[:most].tolist()


def without_directory(paths: Sequence[str]) -> list[str]:
    """Makes absolute paths relative to their common directory, because others read the report."""
    absolute = [os.path.normpath(path) for path in paths if os.path.isabs(path)]
    common = os.path.commonpath([os.path.dirname(path) for path in absolute] or ["/"])
    return [os.path.relpath(path, common) if os.path.isabs(path) else path for path in paths]
