"""The probe: groups stay together, classifiers do not see their fold, rare classes count."""

from __future__ import annotations

import numpy as np
import pytest

from tsm_jax.training import linear_probe
from tsm_jax.training.linear_probe import (
    Features,
    choose,
    cross_validated,
    folds,
    interval,
    mean_recall,
)

CLASSES = 3


def clips(counts=(40, 20, 12), noise=1.0, seed=0):
    """Features of which the first three tell the class, in groups of two clips of a class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    groups = [f"{label}/{i // 2}" for i, label in enumerate(labels)]
    told = np.eye(CLASSES)[labels] * 3 + noise * rng.normal(size=(len(labels), CLASSES))
    nothing = rng.normal(size=(len(labels), 40))
    return Features({"told": told, "nothing": nothing}, labels), groups


def test_folds_keep_groups_together_and_classes_even():
    features, groups = clips()
    fold = folds(features.labels, groups)
    assert len(np.unique(fold)) == 5
    for group in set(groups):
        assert len({int(fold[i]) for i, name in enumerate(groups) if name == group}) == 1
    counts = np.array(
        [np.bincount(features.labels[fold == f], minlength=CLASSES) for f in range(5)]
    )
    assert (counts.max(0) - counts.min(0) <= 2).all()


def test_it_finds_informative_features_and_only_chance_without_any():
    features, groups = clips()
    fold = folds(features.labels, groups)
    right = cross_validated(features, fold, CLASSES) == features.labels
    assert mean_recall(features.labels, right) > 0.9
    assert "told" in choose(features, np.arange(len(fold)), fold, CLASSES).kinds
    low, high = interval(features.labels, right, groups)
    assert low < mean_recall(features.labels, right) < high < 1.01

    shuffled = Features(features.kinds, np.random.default_rng(1).permutation(features.labels))
    right = cross_validated(shuffled, fold, CLASSES) == shuffled.labels
    assert mean_recall(shuffled.labels, right) < 0.55


def test_copies_of_a_clip_do_not_help_within_a_group():
    """Without groups, features that distinguish clips seem to distinguish classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=40).repeat(3)
    features = Features({"of_the_clip": rng.normal(size=(40, 30)).repeat(3, axis=0)}, labels)
    accuracy = {}
    for kind, groups in (("together", np.arange(40).repeat(3)), ("apart", np.arange(120))):
        fold = folds(labels, [str(group) for group in groups])
        accuracy[kind] = (cross_validated(features, fold, CLASSES) == labels).mean()
    assert accuracy["together"] < 0.6 < 0.9 < accuracy["apart"]


def test_a_rare_class_is_predicted():
    features, groups = clips(counts=(180, 12, 12), noise=1.8)
    fold = folds(features.labels, groups)
    answers = cross_validated(features, fold, CLASSES)
    recall = [(answers[features.labels == label] == label).mean() for label in range(CLASSES)]
    assert min(recall) > 0.5


def test_scores_are_those_of_weighted_ridge_regression():
    features, _ = clips(counts=(9, 5, 4))
    inside, outside = np.arange(0, 18, 2), np.arange(1, 18, 2)
    (scores,) = linear_probe._scores(features, ("told",), inside, outside, CLASSES, (0.3,))
    labels = features.labels[inside]
    weights = 1 / np.bincount(labels, minlength=CLASSES)[labels]
    weights *= len(labels) / weights.sum()
    x, mean = features.kinds["told"], np.average(features.kinds["told"][inside], 0, weights)
    deviation = np.sqrt(np.average((x[inside] - mean) ** 2, 0, weights)) + 1e-6
    x = (x - mean) / deviation / np.sqrt(CLASSES)
    y = np.eye(CLASSES)[labels]
    y_mean = np.average(y, 0, weights)
    a = x[inside].T * weights @ x[inside] + 0.3 * np.eye(CLASSES)
    solved = np.linalg.solve(a, x[inside].T * weights @ (y - y_mean))
    np.testing.assert_allclose(scores, x[outside] @ solved + y_mean, rtol=1e-9)


@pytest.mark.parametrize("groups", [3, 1])
def test_there_are_at_most_as_many_folds_as_groups(groups):
    labels = np.arange(12) % 2
    assert len(np.unique(folds(labels, [str(i % groups) for i in range(12)]))) == groups
