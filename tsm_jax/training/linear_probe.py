"""A regularised linear classifier on fixed features, cross-validated within seconds.

This is ridge regression onto the classes in its dual form: with n clips, only n x n systems are
solved, however many features there are. All classes have the same total weight, so that rare ones
count. Features and regularisation strength are chosen within each fold, on its training clips
alone, so the accuracy on the held-out clips is not the maximum of several attempts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FOLDS = 5
# Strengths of the ridge penalty, in units of the mean squared norm of a clip's features.
STRENGTHS = tuple(10.0**exponent for exponent in np.arange(-3, 1.5, 0.5))


@dataclass(frozen=True)
class Features:
    """Features of N clips by kind, float32 `[N, D]` each, and their labels, int `[N]`."""

    kinds: Mapping[str, np.ndarray]
    labels: np.ndarray

    def choices(self) -> list[tuple[str, ...]]:
        """Returns the sets of kinds to try: each kind alone, then all of them together."""
        names = tuple(self.kinds)
        return [(name,) for name in names] + ([names] if len(names) > 1 else [])


@dataclass(frozen=True)
class Chosen:
    """The selected kinds of features and their regularisation strength."""

    kinds: tuple[str, ...]
    strength: float


def folds(labels: np.ndarray, groups: Sequence[str], count: int = FOLDS) -> np.ndarray:
    """Assigns a fold to each clip, int `[N]`: groups stay together, classes are spread evenly.

    Groups are dealt out from the largest to the smallest, each to the fold that makes the shares of
    every class most even (the first one on a tie). With fewer than `count` groups, there are fewer
    folds.
    """
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    classes = np.unique(labels, return_inverse=True)[1]
    by_group = np.zeros((len(names), classes.max() + 1))
    np.add.at(by_group, (members, classes), 1.0)
    by_group /= by_group.sum(0)  # shares of each class
    dealt = np.zeros((min(count, len(names)), by_group.shape[1]))
    fold_of_group = np.zeros(len(names), np.int64)
    for group in np.argsort(-by_group.sum(1), kind="stable"):
        shares = by_group[group]
        uneven = [((dealt + np.outer(place, shares)) ** 2).sum() for place in np.eye(len(dealt))]
        fold_of_group[group] = int(np.argmin(uneven))
        dealt[fold_of_group[group]] += by_group[group]
    return fold_of_group[members]


def cross_validated(features: Features, fold: np.ndarray, num_classes: int) -> np.ndarray:
    """Predicts the class of every clip with a classifier that has not seen its fold, int `[N]`."""
    answers = np.zeros(len(features.labels), np.int64)
    for held_out in np.unique(fold):
        inside, outside = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
        chosen = choose(features, inside, fold[inside], num_classes)
        answers[outside] = answer(features, inside, outside, chosen, num_classes)
    return answers


def choose(features: Features, clips: np.ndarray, fold: np.ndarray, num_classes: int) -> Chosen:
    """Chooses the features and strength with the best mean recall over the folds of `clips`."""
    right: dict[Chosen, np.ndarray] = {}
    for held_out in np.unique(fold):
        inside, outside = clips[fold != held_out], clips[fold == held_out]
        for kinds in features.choices():
            scores = _scores(features, kinds, inside, outside, num_classes)
            for strength, of_clips in zip(STRENGTHS, scores, strict=True):
                hits = np.zeros(len(features.labels), bool)
                hits[outside] = of_clips.argmax(1) == features.labels[outside]
                key = Chosen(kinds, strength)
                right[key] = right.get(key, np.zeros_like(hits)) | hits
    labels = features.labels[clips]
    return max(right, key=lambda key: mean_recall(labels, right[key][clips]))


def answer(
    features: Features, inside: np.ndarray, outside: np.ndarray, chosen: Chosen, num_classes: int
) -> np.ndarray:
    """Predicts the classes of the clips `outside` with a classifier trained on those `inside`."""
    scores = _scores(features, chosen.kinds, inside, outside, num_classes, (chosen.strength,))
    return scores[0].argmax(1)


def mean_recall(labels: np.ndarray, right: np.ndarray) -> float:
    """Returns the mean, over the classes that occur, of the share of their clips that is right."""
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def interval(labels: np.ndarray, right: np.ndarray, groups: Sequence[str]) -> tuple[float, float]:
    """Returns the 95 % confidence interval of mean recall, from 1,000 bootstrap samples.

    Whole groups are drawn, because the clips of a group are alike.
    """
    rng = np.random.default_rng(0)
    members = np.unique(np.asarray(groups), return_inverse=True)[1]
    of_group = [np.flatnonzero(members == group) for group in range(members.max() + 1)]
    values = []
    for _ in range(1000):
        drawn = np.concatenate(
            [of_group[i] for i in rng.integers(len(of_group), size=len(of_group))]
        )
        values.append(mean_recall(labels[drawn], right[drawn]))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _scores(
    features: Features,
    kinds: Sequence[str],
    inside: np.ndarray,
    outside: np.ndarray,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
) -> list[np.ndarray]:
    """Returns the scores `[len(outside), K]` for every strength, from a single decomposition."""
    labels = features.labels[inside]
    weights = 1.0 / np.bincount(labels, minlength=num_classes)[labels]
    weights *= len(labels) / weights.sum()
    train = np.zeros((len(inside), len(inside)))
    test = np.zeros((len(outside), len(inside)))
    for kind in kinds:
        values = features.kinds[kind]
        a, b = _standardized(values[inside], values[outside], weights)
        train += a @ a.T
        test += b @ a.T
    root = np.sqrt(weights)
    targets = np.eye(num_classes)[labels]
    mean = weights @ targets / weights.sum()
    values, vectors = np.linalg.eigh(root[:, None] * train * root)
    projected = vectors.T @ (root[:, None] * (targets - mean))
    known = test @ (root[:, None] * vectors)
    unit = len(kinds)  # each kind has a mean squared norm of 1
    return [mean + known @ (projected / (values + unit * s)[:, None]) for s in strengths]


def _standardized(
    train: np.ndarray, test: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Standardizes features by the training clips, then scales to a mean squared norm of 1."""
    mean = np.average(train, 0, weights)
    deviation = np.sqrt(np.average((train - mean) ** 2, 0, weights)) + 1e-6
    size = np.sqrt(train.shape[1])
    return (train - mean) / deviation / size, (test - mean) / deviation / size
