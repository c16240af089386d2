"""Sums over clips."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tsm_jax.training.metrics import (
    Meter,
    class_sums,
    class_weights,
    clip_ranks,
    clip_sums,
    cross_entropy,
)

LOGITS = jnp.array(
    [
        [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],
        [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],
        [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        [np.nan, 1.0, 1.0, 1.0, 1.0, 1.0],
    ]
)
LABELS = jnp.array([0, 4, 5, 0, 0])


def sums(mask):
    losses = jnp.arange(1.0, 6.0)
    ranks = clip_ranks(LOGITS, LABELS)
    return {k: v.item() for k, v in clip_sums(ranks, jnp.array(mask), losses).items()}


def test_ties_and_scores_that_are_not_finite_count_as_wrong():
    assert sums([True] * 5) == {"count": 5, "top1": 1, "top5": 2, "loss": 15.0}


def test_padding_is_not_counted():
    assert sums([False, True, False, False, False]) == {
        "count": 1,
        "top1": 0,
        "top5": 1,
        "loss": 2.0,
    }
    assert sums([False] * 5)["count"] == 0


def test_cross_entropy_and_label_smoothing():
    logits = np.random.default_rng(0).normal(size=(3, 4))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = np.array([2, 0, 3])
    plain = -log_p[np.arange(3), labels]
    smooth = 0.9 * plain + 0.1 * -log_p.mean(1)
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), labels), plain, rtol=1e-5)
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), labels, 0.1), smooth, rtol=1e-5)


def test_meter_divides_by_all_clips_not_by_batches():
    meter = Meter()
    for count, top1 in ((4, 4), (1, 0)):
        values = {"count": count, "top1": top1, "top5": count, "loss": 2.0 * count}
        meter.update({name: np.array(value) for name, value in values.items()})
    means = {"loss": pytest.approx(2.0), "top1": 0.8, "count": 5}
    assert meter.result(6) == {**means, "top5": 1.0}
    for num_classes in (3, 5):  # every right class is among the first five
        assert meter.result(num_classes) == means


def test_counts_by_class_omit_padding_and_scores_that_are_not_finite():
    ranks = clip_ranks(LOGITS, LABELS)
    clips, right, answers = class_sums(LOGITS, LABELS, ranks, jnp.array([True] * 5)).tolist()
    assert clips == [3, 0, 0, 0, 1, 1]
    assert right == [1, 0, 0, 0, 0, 0]  # neither the tie nor the clip without finite scores
    assert answers == [4, 0, 0, 0, 0, 0]
    padded = class_sums(LOGITS, LABELS, ranks, jnp.array([False, True, False, False, False]))
    assert padded.tolist() == [[0, 0, 0, 0, 1, 0], [0] * 6, [1, 0, 0, 0, 0, 0]]
    assert padded.dtype == jnp.int32


def test_counts_by_class_match_their_definition():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(300, 7)), rng.integers(0, 7, 300)
    mask, answers = rng.random(300) < 0.8, logits.argmax(1)
    logits = jnp.asarray(logits)
    actual = class_sums(logits, labels, clip_ranks(logits, labels), jnp.asarray(mask))
    for k in range(7):
        assert actual[:, k].tolist() == [
            (mask & (labels == k)).sum(),
            (mask & (labels == k) & (answers == k)).sum(),
            (mask & (answers == k)).sum(),
        ]


def test_class_weights_average_to_one_over_clips():
    counts = [40, 10, 0]
    for exponent in (0.0, 0.5, 1.0):
        weights = class_weights(counts, exponent)
        assert weights @ counts == pytest.approx(50)
        assert weights[1] / weights[0] == pytest.approx(4**exponent)
        assert weights[2] == 0
