"""Compares six training steps with PaddleVideo's, and tests each part of the update rule."""

from __future__ import annotations

import golden_recipe
import jax
import numpy as np
import pytest

from tsm_jax.models.architecture import Architecture
from tsm_jax.models.network import build_network
from tsm_jax.training.metrics import cross_entropy
from tsm_jax.training.optimizer import global_norm, make_optimizer, make_schedule
from tsm_jax.weights.paddle_names import from_paddle, to_paddle

STEPS = 6
OPTIMIZER = {
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "decay": "weights",
    "clip_norm": 20.0,
    "fc_weight_multiplier": 5.0,
    "fc_bias_multiplier": 10.0,
}


@pytest.fixture(scope="module")
def gradient():
    """A function `(params, batch_stats, video, labels) -> ((loss, batch_stats), gradients)`, and
    one that splits tensors into params and batch_stats."""
    architecture = Architecture("resnet50", 10, 8, shift_fraction="1/num_segments")
    network = build_network(architecture, "float32")

    def loss(params, batch_stats, video, labels):
        logits, batch_stats = network.apply(params, batch_stats, video, train=True)
        return cross_entropy(logits, labels).mean(), batch_stats

    def split(tensors):
        shapes = network.param_shapes, network.batch_stat_shapes
        return tuple({name: tensors[name] for name in names} for names in shapes)

    return jax.value_and_grad(loss, has_aux=True), split


def run(gradient, **changes):
    """Trains; returns losses, raw gradient norms and final tensors under PaddleVideo's names."""
    value_and_grad, split = gradient
    params, batch_stats = split(from_paddle(golden_recipe.state_dict(10, 0))[0])
    schedule = make_schedule(
        0.02,
        schedule="step",
        boundaries=(2, 4),
        decay_factor=0.1,
        warmup_steps=0,
        total_steps=STEPS,
    )
    optimizer = make_optimizer(schedule, **{**OPTIMIZER, **changes})
    state = optimizer.init(params)

    @jax.jit
    def train_step(params, batch_stats, state, video, labels):
        (loss, batch_stats), gradients = value_and_grad(params, batch_stats, video, labels)
        updates, state = optimizer.update(gradients, state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        return params, batch_stats, state, loss, global_norm(gradients)

    losses, norms = [], []
    for step in range(STEPS):
        video, labels = golden_recipe.train_batch(step)
        video = np.moveaxis(video, 2, -1)
        params, batch_stats, state, loss, norm = train_step(
            params, batch_stats, state, video, labels
        )
        losses.append(float(loss))
        norms.append(float(norm))
    tensors = {name: np.asarray(value) for name, value in {**params, **batch_stats}.items()}
    back, _ = to_paddle(tensors, Architecture("resnet50", 10, 8))
    return np.array(losses), np.array(norms), back


def relative(actual, expected):
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def ours(gradient):
    return run(gradient)


def test_losses(ours, train_goldens):
    np.testing.assert_allclose(ours[0], train_goldens["loss"], rtol=1e-4)


def test_raw_gradient_norms(ours, train_goldens):
    np.testing.assert_allclose(ours[1], train_goldens["gnorm"], rtol=1e-3)


def test_tensors_after_the_last_step(ours, train_goldens):
    tensors = {name: value for name, value in train_goldens.items() if "." in name}
    assert len(tensors) == 9
    errors = {name: relative(ours[2][name], value) for name, value in tensors.items()}
    assert max(errors.values()) < 1e-3, errors


def shrinkage(result, goldens):
    """Returns each tensor's relative distance from the reference in the direction of weight decay.

    The effect of decay is far below the rounding errors of six large steps, but rounding errors do
    not point in the direction of the initial value. In this direction, the effect of decay (7e-6
    for kernels, 4e-5 for the classifier) is visible.
    """
    start = golden_recipe.state_dict(10, 0)
    return {
        name: np.vdot(result[2][name] - value, start[name]) / np.vdot(start[name], start[name])
        for name, value in goldens.items()
        if name.endswith(("weight", "bias")) and "head.fc.bias" not in name
    }


def test_weight_decay_shrinks_the_weights_and_nothing_else(ours, train_goldens):
    shrunk = shrinkage(ours, train_goldens)
    assert len(shrunk) == 5
    assert max(map(abs, shrunk.values())) < 1e-6, shrunk


def misses(result, goldens):
    """Returns whether any of the comparisons above fails."""
    losses, norms, tensors = result
    return (
        not np.allclose(losses, goldens["loss"], rtol=1e-4)
        or not np.allclose(norms, goldens["gnorm"], rtol=1e-3)
        or any(relative(tensors[n], v) > 1e-3 for n, v in goldens.items() if "." in n)
        or max(map(abs, shrinkage(result, goldens).values())) > 1e-6
    )


def test_the_unchanged_rule_passes(ours, train_goldens):
    assert not misses(ours, train_goldens)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"clip_norm": 0.0},
        {"weight_decay": 0.0},
        {"decay": "fc"},
        {"fc_weight_multiplier": 1.0},
        {"fc_bias_multiplier": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_golden_detects_changes_of_the_update_rule(gradient, train_goldens, change):
    assert misses(run(gradient, **change), train_goldens)
