"""Turns scores into answers: averages over views, classes with probabilities, moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tsm_jax.errors import UserError


class Prediction(NamedTuple):
    """One class of an answer; `score` is its softmax probability."""

    index: int
    label: str
    score: float


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns float32 `[..., K]` that sums to one along the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def average_views(logits: np.ndarray, average_probabilities: bool) -> np.ndarray:
    """Averages the views of a clip as evaluation does.

    Args:
        logits: float32 `[V, K]`, of the views.
        average_probabilities: average after the softmax instead of before.

    Returns:
        Logits `[K]` whose softmax is the answer for the clip. All are NaN if any input is NaN or
        infinite, so that no average hides it.
    """
    if not np.isfinite(logits).all():
        return np.full(logits.shape[-1], np.nan, np.float32)
    if not average_probabilities:
        return logits.mean(0)
    shifted = logits - logits.max(-1, keepdims=True)
    log_scores = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return np.logaddexp.reduce(log_scores, axis=0) - np.float32(np.log(len(logits)))


def best_classes(
    logits: np.ndarray, labels: Sequence[str], top_k: int, source: str = "the model"
) -> list[Prediction]:
    """Returns the `top_k` most likely classes (at most K), best first.

    Args:
        logits: float32 `[K]`.
        labels: K class names.
        source: where the network came from, for messages.

    Raises:
        UserError: a logit is NaN or infinite, or there are not K labels.
    """
    if logits.shape != (len(labels),):
        raise UserError(f"{source} has scores for {logits.size} classes but {len(labels)} labels")
    if not np.isfinite(logits).all():
        raise UserError(
            f"{source} produces scores that are NaN or infinite: its weights are damaged, or too"
            " large for this precision (--precision float32 has the widest range)"
        )
    scores = softmax(logits)
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [Prediction(k, labels[k], float(scores[k])) for k in map(int, best)]


def as_values(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Returns predictions as JSON values."""
    return [{**each._asdict(), "score": round(each.score, 6)} for each in predictions]


class Moment(NamedTuple):
    """A window of a video and its answer.

    Attributes:
        start, end: seconds from the first frame of the video.
        predictions: best first.
        scores: softmax of all classes, float32 `[K]`.
    """

    start: float
    end: float
    predictions: list[Prediction]
    scores: np.ndarray

    def values(self) -> dict[str, Any]:
        """Returns the answer as JSON values."""
        times = {"start": round(self.start, 3), "end": round(self.end, 3)}
        return {**times, "predictions": as_values(self.predictions)}
