"""What a training step reads and writes, and how a step that is not finite is kept out of it."""

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
    """Everything that changes from step to step; all float32 but the counters."""

    step: jax.Array  # optimizer steps done, int32
    params: Tensors  # what is trained, by name
    batch_stats: Tensors  # running mean and variance of batch norm, by name
    opt_state: optax.OptState  # velocities and counters
    bad_steps: jax.Array  # steps skipped because they were not finite, int32


def abstract_state(
    network: Network, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and places of a state, whose leaves are `jax.ShapeDtypeStruct`."""

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
    """A state at step 0, the same on every mesh, replicated over its devices.

    Parameters and statistics in `loaded` are taken from there; the others are random, and the same
    as without any.
    """
    params, batch_stats = network.init(seed, loaded)
    zero = np.zeros((), np.int32)
    # As `optimizer.init` gives it, which would compile an operation for each shape: two seconds.
    opt_state = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(optimizer.init, params)
    )
    parts = (zero, params, batch_stats, opt_state, zero)
    return TrainState(*put_replicated(parts, mesh))


Metrics = dict[str, jax.Array]


class Diverged(UserError):
    """More bad steps than `config.max_bad_steps`; the train state is that before the last one."""


def skip_bad_step(
    state: TrainState, updated: TrainState, metrics: Metrics, max_bad_steps: int
) -> tuple[TrainState, Metrics]:
    """Takes `updated` only if the step's loss and gradient, and `updated` itself, are finite.

    A finite gradient can still overflow in the update: a velocity adds up, a multiplier or a
    learning rate scales. The check of the new state costs one more pass over it.

    A bad step leaves parameters, statistics and velocities as they were and only counts. The one
    after `max_bad_steps` of them stops the run: neither it nor the steps that the host has started
    before it learns of that change anything any more, the step counter included.

    Returns:
        The state to go on with, and the metrics with `bad` (bool) and `bad_steps` (int32, of the
        whole run, this one included).
    """
    leaves = (metrics["loss"], metrics["grad_norm"], *jax.tree.leaves(updated))
    # XLA would compute a chain of `&`, or a reduction that it may turn into one, again for each
    # tensor that waits for it: four fifths of a ResNet-50's compiled step.
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
    """The state of a stopped run as it was before its last step: it can be saved and continued."""
    return state._replace(bad_steps=jnp.minimum(state.bad_steps, max_bad_steps))
