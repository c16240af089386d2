"""What a training step reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
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


def init_state(
    network: Network, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh
) -> TrainState:
    """A fresh state, the same on every mesh, replicated over its devices."""
    # Initialisation runs once, and hundreds of random draws take LLVM 5 s to optimise.
    fast_compile = mesh.devices.flat[0].platform == "cpu"
    jitted = jax.jit(
        partial(fresh_state, network, optimizer),
        out_shardings=replicated(mesh),
        compiler_options={"xla_backend_optimization_level": 0} if fast_compile else None,
    )
    return jitted(jax.random.key(seed))


def with_tensors(state: TrainState, tensors: Mapping[str, np.ndarray]) -> TrainState:
    """`state` with some of its parameters and statistics replaced, on the same devices."""

    def replace(current: Tensors) -> Tensors:
        return {
            name: jax.device_put(tensors[name], array.sharding) if name in tensors else array
            for name, array in current.items()
        }

    return state._replace(params=replace(state.params), batch_stats=replace(state.batch_stats))
