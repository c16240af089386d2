"""Compares six float64 training steps with MIT's, and tests each part of the update rule."""

from __future__ import annotations

import functools

import golden_recipe
import jax
import numpy as np
import pytest

from tsm_jax.models.architecture import Architecture
from tsm_jax.models.network import build_network
from tsm_jax.training.metrics import cross_entropy
from tsm_jax.training.optimizer import global_norm, make_optimizer
from tsm_jax.weights.torch_names import MIT, from_torch, to_torch

pytestmark = pytest.mark.slow

ARCHITECTURE = Architecture("resnet50", 10, 8, shift="future_first")
# golden: frozen batch norm, weight seed, learning rate, decay
CASES = {
    "full_bn": ("none", 0, 0.01, 1e-4),
    "partial_bn": ("all_but_first", 0, 0.01, 1e-4),
    "full_bn_decay": ("none", 1, 0.0005, 0.1),
    "partial_bn_decay": ("all_but_first", 1, 0.0005, 0.1),
}


@functools.cache
def programs(dtype, frozen_batch_norm, running_variance):
    """Returns the network and its loss with gradients, compiled once for all update rules."""
    network = build_network(
        ARCHITECTURE,
        dtype,
        frozen_batch_norm=frozen_batch_norm,
        running_variance=running_variance,
    )

    def loss(params, stats, video, labels):
        logits, stats = network.apply(params, stats, video, train=True)
        return cross_entropy(logits, labels).mean(), stats

    return network, jax.jit(jax.value_and_grad(loss, has_aux=True))


def run(case, dtype, steps=6, running_variance="unbiased", **changes):
    """Trains; returns losses, raw gradient norms and the final tensors under MIT's names."""
    frozen, seed, rate, decay = CASES[case]
    frozen = changes.pop("frozen_batch_norm", frozen)
    network, value_and_grad = programs(dtype, frozen, running_variance)
    shapes = {**network.param_shapes, **network.batch_stat_shapes}
    names = to_torch({n: np.zeros(s, np.float32) for n, s in shapes.items()}, ARCHITECTURE, MIT)
    theirs = {n: golden_recipe.draw(n, v.shape, seed) for n, v in names.items() if v.shape}
    tensors = {n: v.astype(dtype) for n, v in from_torch(theirs)[0].items()}
    params, stats = (
        {n: tensors[n] for n in part} for part in (network.param_shapes, network.batch_stat_shapes)
    )
    rule = {
        "momentum": 0.9,
        "weight_decay": decay,
        "decay": "weights",
        "clip_norm": 20.0,
        "fc_weight_multiplier": 5.0,
        "fc_bias_multiplier": 10.0,
    }
    optimizer = make_optimizer(rate, **{**rule, **changes})
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    losses, norms = [], []
    for step in range(steps):
        draws = np.random.default_rng(90_000 + 1000 * seed + step)
        video = np.moveaxis(golden_recipe.mosaic(10_000 + 1000 * seed + step, 2, 8, 64), 2, -1)
        labels = draws.integers(0, 10, 2)
        (value, stats), gradients = value_and_grad(params, stats, video.astype(dtype), labels)
        updates, state = update(gradients, state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        losses.append(float(value))
        norms.append(float(global_norm(gradients)))
    after = {n: np.asarray(v, np.float32) for n, v in {**params, **stats}.items()}
    return np.array(losses), np.array(norms), to_torch(after, ARCHITECTURE, MIT)


def misses(result, case, goldens):
    """Returns the names of the values that differ from the float64 run.

    Tensors are stored only after six steps. They are those of the float32 run, whose relative
    distance from the float64 run is at most `worst_f32`.
    """
    losses, norms, tensors = result
    found = []
    for name, values in (("loss", losses), ("gnorm", norms)):
        expected = goldens[f"{case}.{name}_f64"][: len(values)]
        found += [] if np.allclose(values, expected, rtol=1e-6) else [name]
    if len(losses) < 6:
        return found
    worst = goldens[f"{case}.after6.worst_f32"] + 1e-6
    kept = f"{case}.after6.module."
    for name in (name for name in goldens if name.startswith(kept)):
        key, expected = name.removeprefix(f"{case}.after6."), goldens[name]
        actual = tensors[key][: len(expected)]  # only the first rows of large tensors are stored
        if np.linalg.norm(actual - expected) > worst * np.linalg.norm(expected):
            found.append(key)
    return found


@pytest.fixture(scope="module")
def goldens():
    return dict(np.load(golden_recipe.GOLDENS / "mit_train.npz"))


@pytest.mark.parametrize("case", CASES)
def test_six_steps_in_float64(case, goldens):
    with jax.enable_x64(True):
        assert misses(run(case, "float64"), case, goldens) == []


@pytest.mark.parametrize("case", ["full_bn_decay", "partial_bn_decay"])
def test_six_steps_in_float32_differ_only_by_rounding(case, goldens):
    losses, norms, _ = run(case, "float32")
    for found, name in ((losses, "loss"), (norms, "gnorm")):
        exact, rounded = goldens[f"{case}.{name}_f64"], goldens[f"{case}.{name}"]
        assert abs(found / exact - 1).max() < 2 * abs(rounded / exact - 1).max() + 1e-6


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("full_bn_decay", {"weight_decay": 0.0}),
        ("full_bn_decay", {"decay": "fc"}),
        ("full_bn_decay", {"clip_norm": 0.0}),
        ("full_bn_decay", {"fc_weight_multiplier": 1.0}),
        ("full_bn_decay", {"fc_bias_multiplier": 1.0}),
        ("full_bn_decay", {"running_variance": "biased"}),
        ("partial_bn_decay", {"frozen_batch_norm": "all"}),
        ("partial_bn_decay", {"frozen_batch_norm": "none"}),
    ],
    ids=str,
)
def test_the_golden_detects_changes_of_the_update_rule(case, change, goldens):
    with jax.enable_x64(True):
        # They affect the loss from the second step on, except for the running variance.
        steps = 6 if "running_variance" in change else 2
        assert misses(run(case, "float64", steps, **change), case, goldens)
