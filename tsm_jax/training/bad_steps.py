"""Steps that are not finite: kept out of the train state, counted, and reported."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from tsm_jax.errors import UserError
from tsm_jax.training.state import TrainState

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

    Args:
        state: before the step.
        updated: after it.
        metrics: of the step, with `loss` and `grad_norm`.
        max_bad_steps: `config.max_bad_steps`.

    Returns:
        The state to go on with, and the metrics with `bad` (bool) and `bad_steps` (int32, of the
        whole run, this one included).
    """
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    for leaf in jax.tree.leaves(updated):
        finite &= jnp.isfinite(leaf).all()
    bad = ~finite
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


def name_some(clips: Sequence[str], limit: int = 4) -> str:
    """The first clips of a batch in words."""
    rest = len(clips) - limit
    return ", ".join(clips[:limit]) + (f" and {rest} more" if rest > 0 else "")
