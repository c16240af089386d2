"""The state after a step that is not finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsm_jax.training.state import TrainState, last_finite, skip_bad_step


def state(value, step=0, bad_steps=0):
    value = jnp.float32(value)
    arrays = {"kernel": value}, {"mean": value}, ({"velocity": value, "count": jnp.int32(step)},)
    return TrainState(jnp.int32(step), *arrays, jnp.int32(bad_steps))


def run(losses, max_bad_steps, grad_norms=None):
    """Returns the last state, and the metrics of each step; a step adds one to every array."""
    current, reported = state(0.0), []
    for loss, norm in zip(losses, grad_norms or [1.0] * len(losses), strict=True):
        updated = state(current.params["kernel"] + 1, current.step + 1, current.bad_steps)
        metrics = {"loss": jnp.float32(loss), "grad_norm": jnp.float32(norm)}
        current, metrics = skip_bad_step(current, updated, metrics, max_bad_steps)
        reported.append((bool(metrics["bad"]), int(metrics["bad_steps"])))
    return current, reported


def values(tree):
    return [np.asarray(leaf).item() for leaf in jax.tree.leaves(tree)]


def test_good_steps_pass_unchanged():
    final, reported = run([1.0, 2.0], 0)
    assert values(final) == values(state(2.0, 2))
    assert reported == [(False, 0), (False, 0)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["loss", "grad_norm"])
def test_a_bad_step_is_counted_and_changes_nothing_else(value, where):
    numbers = [1.0, value, 1.0]
    final, reported = run(numbers, 1) if where == "loss" else run([1.0] * 3, 1, numbers)
    # Three steps, two of them with updates; optax's own counter counts updates.
    assert values(final) == [3, 2.0, 2.0, final.opt_state[0]["count"].item(), 2.0, 1]
    assert reported == [(False, 0), (True, 1), (False, 1)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["params", "batch_stats", "opt_state"])
def test_a_step_is_bad_if_only_its_update_is_not_finite(value, where):
    before, after = state(0.0), state(1.0, 1)
    after = after._replace(**{where: getattr(state(value, 1), where)})
    kept, metrics = skip_bad_step(
        before, after, {"loss": jnp.float32(1.0), "grad_norm": jnp.float32(1.0)}, 1
    )
    assert bool(metrics["bad"])
    assert values(kept) == [1, *values(before)[1:-1], 1]


def test_the_state_is_frozen_from_the_step_that_stops_the_run():
    final, reported = run([1.0, np.nan, np.nan, 1.0, np.nan, 1.0], 1)
    assert reported[2] == (True, 2)
    final = last_finite(final, 1)
    # The state before the second bad step: two steps done, one of them bad.
    assert [int(final.step), int(final.bad_steps), float(final.params["kernel"])] == [2, 1, 1.0]
