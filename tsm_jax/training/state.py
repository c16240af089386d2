"""What a training step reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
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
        bad_steps: steps skipped because they were not finite, int32.
    """

    step: jax.Array
    params: Tensors
    batch_stats: Tensors
    opt_state: optax.OptState
    bad_steps: jax.Array


def abstract_state(
    network: Network, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and places of a state, whose leaves are `jax.ShapeDtypeStruct`."""

    def zeros() -> TrainState:
        params, batch_stats = (
            {name: jnp.zeros(shape) for name, shape in shapes.items()}
            for shapes in (network.param_shapes, network.batch_stat_shapes)
        )
        none = jnp.zeros((), jnp.int32)
        return TrainState(none, params, batch_stats, optimizer.init(params), none)

    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        jax.eval_shape(zeros),
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
        loaded: parameters and statistics to start from, by name. The others are random, and the
            same as without any.
    """

    def put(leaf: jax.Array | np.ndarray) -> jax.Array:
        array = np.asarray(leaf)  # the same in all processes, which need not talk about it
        sharding = replicated(mesh)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    host_params, host_batch_stats = network.init(seed, loaded)
    opt_state = jax.tree.map(put, optimizer.init(host_params))
    params, batch_stats = jax.tree.map(put, (host_params, host_batch_stats))
    none = np.zeros((), np.int32)
    return TrainState(put(none), params, batch_stats, opt_state, put(none))
