"""How a training state is initialised."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from tsm_jax.models.network import Network
from tsm_jax.models.tsm import TSM
from tsm_jax.training.mesh import make_mesh
from tsm_jax.training.optimizer import make_optimizer
from tsm_jax.training.state import TrainState, abstract_state, init_state, skip_bad_step


@pytest.fixture(scope="module")
def parts():
    network = Network(lambda: TSM("resnet18", num_classes=3, num_segments=2, width=8))
    return network, optax.sgd(0.1, momentum=0.9), make_mesh(jax.devices()[:2])


def start(parts, loaded=None, seed=5):
    network, optimizer, mesh = parts
    return init_state(network, optimizer, seed, mesh, loaded)


def test_loaded_values_are_used_and_the_rest_is_random_as_usual(parts):
    kernel, mean = "backbone.stem.conv.kernel", "backbone.stem.norm.mean"
    fresh = start(parts)
    rng = np.random.default_rng(0)
    loaded = {
        name: rng.normal(size=tensors[name].shape).astype(np.float32)
        for name, tensors in ((kernel, fresh.params), (mean, fresh.batch_stats))
    }
    state = start(parts, loaded)
    for before, after in ((fresh.params, state.params), (fresh.batch_stats, state.batch_stats)):
        assert before.keys() == after.keys()
        for name, tensor in after.items():
            np.testing.assert_array_equal(tensor, loaded.get(name, before[name]), err_msg=name)
    assert not np.array_equal(start(parts, seed=6).params[kernel], fresh.params[kernel])


def test_a_state_starts_the_same_on_any_mesh(parts):
    network, optimizer, mesh = parts
    states = [init_state(network, optimizer, 5, on) for on in (mesh, make_mesh(jax.devices()))]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_an_abstract_state_matches_a_state(parts):
    def description(state):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state)

    assert description(abstract_state(*parts)) == description(start(parts))


@pytest.mark.parametrize("frozen", [(), ("backbone.stem",)])
def test_the_optimizer_state_equals_that_of_its_init(parts, frozen):
    network, _, mesh = parts
    optimizer = make_optimizer(
        lambda step: 0.1 / (1 + step),
        momentum=0.9,
        weight_decay=1e-4,
        decay="weights",
        clip_norm=20.0,
        fc_weight_multiplier=5.0,
        fc_bias_multiplier=10.0,
        frozen=frozen,
    )
    state = init_state(network, optimizer, 0, mesh)
    own = optimizer.init(state.params)
    assert jax.tree.structure(own) == jax.tree.structure(state.opt_state)
    for ours, its in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(own), strict=True):
        assert (ours.dtype, ours.weak_type) == (its.dtype, its.weak_type)
        np.testing.assert_array_equal(ours, its)


def test_the_finite_check_is_computed_once_and_not_for_each_tensor():
    tensors = {str(i): jax.ShapeDtypeStruct((4 + i, 3), "float32") for i in range(25)}
    counter = jax.ShapeDtypeStruct((), "int32")
    state = TrainState(counter, tensors, {}, tensors, counter)
    number = jax.ShapeDtypeStruct((), "float32")
    step = jax.jit(skip_bad_step, static_argnums=3)
    compiled = step.lower(state, state, {"loss": number, "grad_norm": number}, 0).compile()
    operations = compiled.as_text().count(" and(")
    assert 1 <= operations < 5 * len(jax.tree.leaves(state))  # in a chain: 2,700
