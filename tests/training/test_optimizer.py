"""The optimizer against the reference's rule, written out in NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tsm_jax.training.optimizer import is_in, make_optimizer, make_schedule

ARGUMENTS = {
    "momentum": 0.9,
    "weight_decay": 0.1,
    "decay": "weights",
    "clip_norm": 2.0,
    "fc_weight_multiplier": 5.0,
    "fc_bias_multiplier": 10.0,
}
SHAPES = {
    "backbone.stem.conv.kernel": (3, 3, 2, 2),
    "backbone.stem.norm.scale": (4,),
    "backbone.stem.norm.bias": (4,),
    "head.fc.kernel": (4, 3),
    "head.fc.bias": (3,),
}
MULTIPLIER = {"head.fc.kernel": 5.0, "head.fc.bias": 10.0}
RATES = (0.1, 0.1, 0.01)


def draws(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: scale * rng.normal(size=shape) for name, shape in SHAPES.items()}


def reference(decayed):
    """Paddle's Momentum: clip the raw gradients, add L2, accumulate, step."""
    params, velocity = draws(0), dict.fromkeys(SHAPES, 0.0)
    for step, rate in enumerate(RATES):
        gradients = draws(step + 1)
        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        for name in SHAPES:
            g = gradients[name] * 2.0 / max(norm, 2.0)
            if name in decayed:
                g = g + 0.1 * params[name]
            velocity[name] = 0.9 * velocity[name] + g
            params[name] = params[name] - rate * MULTIPLIER.get(name, 1.0) * velocity[name]
    return params


def ours(steps=3, **changes):
    def schedule(step):
        return jnp.asarray(RATES)[step]

    optimizer = make_optimizer(schedule, **{**ARGUMENTS, **changes})
    params = {name: jnp.asarray(value, jnp.float32) for name, value in draws(0).items()}
    state = optimizer.init(params)
    for step in range(steps):
        gradients = {n: jnp.asarray(g, jnp.float32) for n, g in draws(step + 1).items()}
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    ("decay", "decayed"),
    [
        ("weights", {"backbone.stem.conv.kernel", "head.fc.kernel"}),
        ("fc", {"head.fc.kernel"}),
    ],
)
def test_follows_the_reference(decay, decayed):
    expected, actual = reference(decayed), ours(decay=decay)
    for name in SHAPES:
        np.testing.assert_allclose(actual[name], expected[name], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"clip_norm": 0.0},
        {"weight_decay": 0.0},
        {"momentum": 0.0},
        {"fc_weight_multiplier": 1.0},
        {"fc_bias_multiplier": 1.0},
    ],
)
def test_every_part_of_the_rule_matters(change):
    expected, actual = reference({"backbone.stem.conv.kernel", "head.fc.kernel"}), ours(**change)
    assert any(abs(actual[name] - expected[name]).max() > 1e-2 for name in SHAPES)


def rates(steps, **changes):
    arguments = {
        "schedule": "step",
        "boundaries": (20, 40),
        "decay_factor": 0.1,
        "warmup_steps": 0,
        "total_steps": 50,
        **changes,
    }
    schedule = make_schedule(0.02, **arguments)
    return [float(schedule(step)) for step in steps]


def test_steps_down_at_the_boundaries():
    assert rates([0, 19, 20, 39, 40, 49]) == pytest.approx(
        [0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002]
    )


def test_warms_up_linearly_and_then_keeps_the_boundaries():
    steps = [0, 5, 10, 19, 20, 40]
    expected = [0.0, 0.01, 0.02, 0.02, 0.002, 0.0002]
    assert rates(steps, warmup_steps=10) == pytest.approx(expected)


def test_cosine_ends_at_zero():
    expected = [0.0, 0.02, 0.01, 0.0]
    assert rates([0, 10, 30, 50], schedule="cosine", warmup_steps=10) == pytest.approx(
        expected, abs=1e-8
    )


def test_frozen_parts_keep_their_values_and_do_not_affect_the_others():
    stem = {"backbone.stem.conv.kernel", "backbone.stem.norm.scale", "backbone.stem.norm.bias"}
    frozen, free, start = (
        ours(frozen=("backbone.stem",), clip_norm=0.0),
        ours(clip_norm=0.0),
        draws(0),
    )
    for name in SHAPES:
        wanted = np.float32(start[name]) if name in stem else free[name]
        np.testing.assert_array_equal(frozen[name], wanted)


def test_a_part_is_a_whole_name():
    assert is_in("backbone.blocks.1.project.conv.kernel", ("backbone.blocks.1",))
    assert not is_in("backbone.blocks.10.project.conv.kernel", ("backbone.blocks.1",))


def test_the_warm_up_of_whole_cosine_ends_below_the_peak():
    """PP-TSM: the warm-up rises to 0.962 of the peak, its value after 10 of 80 epochs."""
    found = rates(
        [0, 5, 10, 40, 80],
        schedule="whole_cosine",
        warmup_steps=10,
        warmup_start=0.5,
        total_steps=80,
    )
    end = 0.02 * (1 + np.cos(np.pi / 8)) / 2
    assert found == pytest.approx([0.01, (0.01 + end) / 2, end, 0.01, 0.0], abs=1e-8)
    assert end / 0.02 == pytest.approx(0.962, abs=1e-3)


def test_nesterov_looks_ahead():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    parameters = [torch.nn.Parameter(torch.tensor(v)) for v in draws(0).values()]
    sgd = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)
    for step in range(2):  # the rate steps down after
        for parameter, gradient in zip(parameters, draws(step + 1).values(), strict=True):
            parameter.grad = torch.tensor(gradient)
        sgd.step()
    change = {"clip_norm": 0.0, "weight_decay": 0.0, "fc_weight_multiplier": 1.0}
    found = ours(2, nesterov=True, fc_bias_multiplier=1.0, **change)
    for name, wanted in zip(SHAPES, parameters, strict=True):
        np.testing.assert_allclose(found[name], wanted.detach().numpy(), rtol=1e-5, atol=1e-5)
