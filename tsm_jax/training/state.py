"""What a training step reads and writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from tsm_jax.models.network import Network, Tensors
from tsm_jax.training.mesh import replicated


class TrainState(NamedTuple):
    """Everything that changes from step to step; all float32 but the counters.

    Attributes:
        step: optimizer steps done, int32.
        params: what is trained, by name.
        batch_stats: running mean and variance of batch norm, by name.
        opt_state: optax's state: velocities and counters.
        bad_steps: steps skipped because their loss or gradient was not finite, int32.
    """

    step: jax.Array
    params: Tensors
    batch_stats: Tensors
    opt_state: optax.OptState
    bad_steps: jax.Array


def fresh_state(
    network: Network, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """Random weights at step 0. Call it under `jax.jit` or `jax.eval_shape`."""
    params, batch_stats = network.init(key)
    none = jnp.zeros((), jnp.int32)
    return TrainState(none, params, batch_stats, optimizer.init(params), none)


def abstract_state(
    network: Network, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and places of a state, whose leaves are `jax.ShapeDtypeStruct`."""
    shapes = jax.eval_shape(partial(fresh_state, network, optimizer), jax.random.key(0))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), shapes
    )


def init_state(
    network: Network,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    loaded: Mapping[str, np.ndarray] | None = None,
) -> TrainState:
    """A state at step 0, the same on every mesh, replicated over its devices.

    Args:
        network: in training.
        optimizer: of its parameters.
        seed: of the random weights.
        mesh: the devices.
        loaded: parameters and statistics to start from, by name. The others are random; drawing
            those alone is what makes the start from weights quick.
    """
    given = loaded or {}

    def draw(key: jax.Array) -> TrainState:
        state = fresh_state(network, optimizer, key)
        return state._replace(
            params=_without(state.params, given), batch_stats=_without(state.batch_stats, given)
        )

    # Initialisation runs once, and hundreds of random draws take LLVM 5 s to optimise.
    fast_compile = mesh.devices.flat[0].platform == "cpu"
    jitted = jax.jit(
        draw,
        out_shardings=replicated(mesh),
        compiler_options={"xla_backend_optimization_level": 0} if fast_compile else None,
    )
    state = jitted(jax.random.key(seed))

    def complete(drawn: Tensors, names: Iterable[str]) -> Tensors:
        put = partial(jax.device_put, device=replicated(mesh))
        return {name: drawn[name] if name in drawn else put(given[name]) for name in names}

    return state._replace(
        params=complete(state.params, network.param_shapes),
        batch_stats=complete(state.batch_stats, network.batch_stat_shapes),
    )


def _without(tensors: Tensors, names: Mapping[str, np.ndarray]) -> Tensors:
    return {name: array for name, array in tensors.items() if name not in names}
