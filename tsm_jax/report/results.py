"""What every part of a report starts from: names, answers and scores of the clips."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from tsm_jax.assemble.evaluate import Evaluation
from tsm_jax.deploy.prediction import softmax
from tsm_jax.errors import UserError


@dataclass(frozen=True)
class Results:
    """The answers to N clips, in the order of the list.

    Attributes:
        names: of the clips, as the list has them; absolute paths from their common folder on,
            because a report is given to others.
        class_names: K names.
        labels: right classes, int `[N]`.
        ranks: number of other classes that score at least as high as the right one, `[N]`.
        scores: softmax probabilities, float32 `[N, K]`.
        predicted: the best class, int `[N]`; where the right one shares the first place with
            another, the other one, as in the counting of top-1.
    """

    names: list[str]
    class_names: list[str]
    labels: np.ndarray
    ranks: np.ndarray
    scores: np.ndarray
    predicted: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Whether the best class is the right one, bool `[N]`."""
        return self.ranks == 0

    @property
    def confidence(self) -> np.ndarray:
        """Score of the predicted class, float32 `[N]`."""
        return self.scores[np.arange(len(self.labels)), self.predicted]

    def best(self, clip: int, count: int) -> list[int]:
        """The `count` best classes of a clip, at most K, the predicted one first."""
        order = np.argsort(-self.scores[clip], kind="stable")
        first = self.predicted[clip]
        return [int(k) for k in [first, *order[order != first]][:count]]


def collect(evaluation: Evaluation) -> Results:
    """The results of an evaluation.

    Raises:
        UserError: the scores of a clip are not finite.
    """
    names = [evaluation.clips.source.name(i) for i in range(len(evaluation.labels))]
    finite = np.isfinite(evaluation.logits).all(1)
    if not finite.all():
        raise UserError(
            f"{evaluation.weights}: the scores of {names[int(np.argmin(finite))]} are not finite"
            " numbers: the weights are damaged or config.dtype is too coarse for them"
        )
    return Results(
        names=_below_common_folder(names),
        class_names=evaluation.class_names,
        labels=evaluation.labels,
        ranks=evaluation.ranks,
        scores=softmax(evaluation.logits),
        predicted=_predicted(evaluation),
    )


def _below_common_folder(names: list[str]) -> list[str]:
    if not names or not all(map(os.path.isabs, names)):
        return names
    folder = os.path.commonpath([os.path.dirname(name) for name in names])
    return [os.path.relpath(name, folder) for name in names]


def _predicted(evaluation: Evaluation) -> np.ndarray:
    labels, ranks = evaluation.labels, evaluation.ranks
    others = evaluation.logits.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return np.where(ranks == 0, labels, others.argmax(1)).astype(np.int32)
