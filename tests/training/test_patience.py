"""A run ends when its validations have not improved for some epochs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tsm_jax.config import Plan, default
from tsm_jax.training.loop import _steps

PLAN = Plan(steps_per_epoch=5, total_steps=50, boundaries=(), warmup_steps=0)


def run(patience, *, best_epoch=2, first_step=0):
    """A run that improves up to an epoch; 0 for no validation with a finite loss."""
    config = default()
    config.patience = patience
    said: list[str] = []
    done = [first_step]

    def best_step():
        return 5 * min(best_epoch, done[0] // 5) or None

    parts: Any = SimpleNamespace(
        config=config,
        plan=PLAN,
        first_step=first_step,
        checkpoints=SimpleNamespace(best_step=best_step),
        log=SimpleNamespace(say=said.append),
    )
    for step in _steps(parts):
        done[0] = step + 1
    return done[0], said


@pytest.mark.parametrize(("patience", "end"), [(0, 50), (3, 25), (1, 15), (20, 50)])
def test_a_run_ends_that_many_epochs_after_the_best(patience, end):
    done, said = run(patience)
    assert done == end
    assert len(said) == (end < 50)
    if said:
        assert f"for {patience} epochs" in said[0] and "since step 10" in said[0]


def test_a_run_also_ends_without_any_finite_validation():
    assert run(2, best_epoch=0)[0] == 10


def test_an_ended_run_trains_no_more_steps_unless_given_more_patience():
    assert run(3, first_step=25)[0] == 25
    assert run(5, first_step=25)[0] == 35
    assert run(3, first_step=22)[0] == 25  # stopped within the last epoch
