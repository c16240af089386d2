"""An answer: classes with their probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Prediction(NamedTuple):
    """One class of an answer; `score` is its softmax probability."""

    index: int
    label: str
    score: float


def softmax(logits: np.ndarray) -> np.ndarray:
    """float32 `[..., K]`, the last axis summing to one."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def best_classes(logits: np.ndarray, labels: Sequence[str], top_k: int) -> list[Prediction]:
    """The `top_k` most likely classes (at most K), best first.

    Args:
        logits: float32 `[K]`.
        labels: K names.
        top_k: how many.
    """
    scores = softmax(logits)
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [Prediction(k, labels[k], float(scores[k])) for k in map(int, best)]
