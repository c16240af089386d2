"""Whether a score of 0.8 is right in 80 of 100 clips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tsm_jax.report.results import Results

BINS = 15


@dataclass(frozen=True)
class Bin:
    """The clips whose best score lies in `(low, high]`.

    Attributes:
        low: of the range.
        high: of the range.
        count: of clips.
        confidence: mean of their best scores; 0 without clips.
        accuracy: share of them that is right; 0 without clips.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy.

    Attributes:
        bins: of equal width, from 0 to 1.
        expected_error: mean over clips of |accuracy - confidence| of their bin (ECE).
        confidence: mean of the best scores of all clips.
        accuracy: share of all clips that is right.

    Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equations 1 to 3.
    """

    bins: list[Bin]
    expected_error: float
    confidence: float
    accuracy: float


def calibrate(results: Results, num_bins: int = BINS) -> Calibration:
    """The calibration of the best scores."""
    confidence = results.confidence.astype(np.float64)
    correct = results.correct.astype(np.float64)
    place = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    sums = (np.bincount(place, weights, num_bins) for weights in (confidence, correct))
    means = [total / np.maximum(counts, 1) for total in sums]
    bins = [
        Bin(i / num_bins, (i + 1) / num_bins, int(n), float(c), float(a))
        for i, (n, c, a) in enumerate(zip(counts, *means, strict=True))
    ]
    error = sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / len(correct)
    return Calibration(bins, error, float(confidence.mean()), float(correct.mean()))
