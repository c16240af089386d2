"""The state that a training step reads and writes; steps that are not finite are kept out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from tsm_jax.errors import UserError
from tsm_jax.models.network import Network, Tensors
from tsm_jax.training.mesh import put_replicated, replicated


class TrainState(NamedTuple):
    """Everything that changes from step to step; float32 except for the counters."""

    step: jax.Array  # completed optimizer steps, int32
    params: Tensors  # parameters, by name
    batch_stats: Tensors  # running mean and variance of batch norm, by name
    opt_state: optax.OptState  # velocities and counters
    bad_steps: jax.Array  # steps skipped because they were not finite, int32


def abstract_state(
    network: Network, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Returns a state with the shapes, dtypes and shardings only (`jax.ShapeDtypeStruct`)."""

    def zeros() -> TrainState:
        params, batch_stats = (
            {name: jnp.zeros(shape) for name, shape in shapes.items()}
            for shapes in (network.param_shapes, network.batch_stat_shapes)
        )
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, params, batch_stats, optimizer.init(params), zero)

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
    """Returns a state at step 0, the same on every mesh, replicated over its devices.

    Parameters and statistics in `loaded` are used as they are. The others are random, with the same
    values as without `loaded`.
    """
    params, batch_stats = network.init(seed, loaded)
    zero = np.zeros((), np.int32)
    # What `optimizer.init` returns, which would compile an operation for each shape: two seconds.
    opt_state = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(optimizer.init, params)
    )
    parts = (zero, params, batch_stats, opt_state, zero)
    return TrainState(*put_replicated(parts, mesh))


Metrics = dict[str, jax.Array]


class Diverged(UserError):
    """More bad steps than `config.max_bad_steps`; the train state precedes the last of them."""


def skip_bad_step(
    state: TrainState, updated: TrainState, metrics: Metrics, max_bad_steps: int
) -> tuple[TrainState, Metrics]:
    """Accepts `updated` only if the step's loss and gradient, and `updated` itself, are finite.

    A finite gradient can still overflow in the update, because velocities accumulate and
    multipliers and learning rates scale. Checking the new state costs one more pass over it.

    A bad step leaves parameters, statistics and velocities unchanged and is only counted. The bad
    step after `max_bad_steps` others stops the run: neither it nor the steps that the host starts
    before it learns of that change the parameters, statistics, velocities or the step counter.

    Returns:
        The state to continue with, and the metrics plus `bad` (bool) and `bad_steps` (int32, of the
        whole run including this step).
    """
    leaves = (metrics["loss"], metrics["grad_norm"], *jax.tree.leaves(updated))
    # Without the barrier, XLA would recompute a chain of `&`, or a reduction that it may turn into
    # one, for each tensor that depends on it: four fifths of a ResNet-50's compiled step.
    finite = jax.lax.optimization_barrier(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))
    bad = ~finite.all()
    bad_steps = state.bad_steps + bad
    stopped = bad_steps > max_bad_steps

    def choose(before: jax.Array, after: jax.Array) -> jax.Array:
        return jnp.where(bad | stopped, before, after)

    kept = jax.tree.map(choose, state, updated)
    step = jnp.where(stopped, state.step, updated.step)
    kept = kept._replace(step=step, bad_steps=bad_steps)
    return kept, {**metrics, "bad": bad, "bad_steps": bad_steps}


def last_finite(state: TrainState, max_bad_steps: int) -> TrainState:
    """Returns the state of a stopped run before its last step; it can be saved and continued."""
    return state._replace(bad_steps=jnp.minimum(state.bad_steps, max_bad_steps))
