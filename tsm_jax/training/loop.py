"""The training loop: steps, log lines, checkpoints, validation after every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tsm_jax import accuracy
from tsm_jax.config import Plan
from tsm_jax.data.pipeline import Batch
from tsm_jax.errors import UserError
from tsm_jax.training.checkpoint import Checkpoints
from tsm_jax.training.log import RunLog
from tsm_jax.training.mesh import put_batch
from tsm_jax.training.preemption import Preempted, Preemption
from tsm_jax.training.processes import from_first, stop_vote
from tsm_jax.training.progress import Progress, StartedStep
from tsm_jax.training.state import Diverged, TrainState, last_finite
from tsm_jax.training.steps import TrainStep

# Means over the validation clips for a state; calls the second argument after every batch, with
# the batches done and their number.
Validate = Callable[[TrainState, Callable[[int, int], None]], dict[str, float]]
# The state with a part of it computed from whole batches; calls the last argument before each.
# Its step is given besides, because to ask the state for it is to wait for the devices.
FromBatches = Callable[[TrainState, int, Callable[[], None]], TrainState]


@dataclass(frozen=True)
class TrainingRun:
    """A run, ready to start."""

    config: ConfigDict
    plan: Plan
    mesh: Mesh
    class_names: Sequence[str]
    first_step: int  # of this process
    train_step: TrainStep
    validate: Validate
    compute_statistics: FromBatches | None  # of batch norm; None where the recipe wants none
    refit_classifier: FromBatches | None
    checkpoints: Checkpoints
    log: RunLog
    progress: Progress
    preemption: Preemption


def train(run: TrainingRun, state: TrainState, batches: Iterator[Batch]) -> TrainState:
    """Trains to the end of the plan.

    Args:
        state: where to start, at `run.first_step`; its memory is reused.
        batches: this host's part of the batches from `run.first_step` on.

    Returns:
        The last state. It is saved, and so is the best one.

    Raises:
        Preempted: a signal asked the run to stop; everything is saved.
        Diverged: too many steps were not finite; the state before the last of them is saved.
        UserError: something cannot be read or written.
    """
    stop = stop_vote(run.preemption, run.mesh)
    first_step, progress, every = run.first_step, run.progress, run.config.checkpoint_every
    validated = from_first(run.checkpoints.validated(first_step))
    if run.plan.ends_epoch(first_step) and not validated:
        _validate_epoch(run, state, first_step, stop)  # the process before did not get so far
    pending = None
    for step in _steps(run):
        started = time.perf_counter()
        batch = next(batches)
        reading = time.perf_counter() - started

        state, metrics = run.train_step(state, put_batch(batch, run.mesh))
        run.preemption.steps_taken()
        preempted = stop()
        done = step + 1
        ends_epoch = run.plan.ends_epoch(done)
        reports = ends_epoch or run.plan.step_in_epoch(done) % run.config.log_every == 0
        saves = ends_epoch or preempted or (every > 0 and done % every == 0)
        try:
            # One step late: the devices always have the next step to do while the host reads.
            if pending is not None:
                progress.finished(pending)
            pending = StartedStep(step, reading, batch["index"], metrics)
            if reports or saves:
                progress.finished(pending)
                pending = None
        except Diverged:
            _leave_last_finite(run, state, stop)
            raise
        if reports:
            progress.report(done)
        state = _finish_epoch(run, state, done, preempted, stop)
        if saves:
            run.checkpoints.save(state, run.config, progress.to_save())
        if preempted:
            raise _preempted(run, done)
        if ends_epoch:
            _validate_epoch(run, state, done, stop)
    run.checkpoints.wait()
    return state


def _steps(run: TrainingRun) -> Iterator[int]:
    """The steps to do, until the plan or the patience ends."""
    for step in range(run.first_step, run.plan.total_steps):
        if run.plan.ends_epoch(step) and _out_of_patience(run, step):
            return
        yield step


def _out_of_patience(run: TrainingRun, step: int) -> bool:
    """Whether the run ends here; known from the checkpoints alone, so that it is when continued."""
    best_step = from_first(run.checkpoints.best_step() or 0)
    epochs = (step - best_step) // run.plan.steps_per_epoch
    if not 0 < run.config.patience <= epochs:
        return False
    run.log.say(
        f"no better {run.config.best_metric} for {epochs} epochs (config.patience), since step"
        f" {best_step}: training ends early"
    )
    return True


def _is_precise(run: TrainingRun, step: int) -> bool:
    """Whether an epoch ends here, and is one that `config.precise_batch_norm` means."""
    if not run.plan.ends_epoch(step):
        return False
    epoch = step // run.plan.steps_per_epoch
    return (epoch - 1) % run.config.precise_batch_norm == 0 or epoch == run.config.epochs


def _finish_epoch(
    run: TrainingRun, state: TrainState, step: int, preempted: bool, stop: Callable[[], bool]
) -> TrainState:
    """The state with what the recipe wants from whole batches after this step, if anything."""

    def before_batch() -> None:
        # Whoever continues from a checkpoint could not see that it is missing in it.
        if preempted or stop():
            raise _preempted(run, step, "it goes on from the last checkpoint")

    computations: dict[str, FromBatches] = {}
    if run.compute_statistics and _is_precise(run, step):
        computations["batch norm"] = run.compute_statistics
    if run.refit_classifier and step == run.plan.total_steps:
        computations["classifier"] = run.refit_classifier
    for name, compute in computations.items():
        started = time.perf_counter()
        found = compute(state, step, before_batch)
        tensors = (*found.params.values(), *found.batch_stats.values())
        if all(np.isfinite(np.asarray(tensor)).all() for tensor in tensors):
            seconds = time.perf_counter() - started
            run.log.say(f"{name} computed from whole batches: {seconds:.1f} s")
            state = found
        else:
            run.log.say(
                f"warning: {name} computed from whole batches is not finite; it stays as it was"
            )
    return state


def _preempted(run: TrainingRun, step: int, what: str = "everything is saved") -> Preempted:
    """Waits until everything is on disk."""
    run.checkpoints.wait()
    return Preempted(f"stopped at step {step} as the system asked; {what}")


def _validate(
    run: TrainingRun, state: TrainState, step: int, stop: Callable[[], bool]
) -> tuple[dict[str, float], str]:
    """Means over the validation clips, and the same in words; can be stopped after any batch."""

    def on_batch(batch: int, batches: int) -> None:
        run.progress.validating(step, batch, batches)
        if stop():
            raise _preempted(run, step)

    started = time.perf_counter()
    metrics = run.validate(state, on_batch)
    seconds = time.perf_counter() - started
    run.progress.validated(seconds)
    return metrics, (
        f"val loss {metrics['loss']:.5f}  {accuracy.in_words(metrics)}"
        f"  {metrics['count']} clips in {seconds:.1f} s"
    )


def _validate_epoch(
    run: TrainingRun, state: TrainState, step: int, stop: Callable[[], bool]
) -> None:
    """Validates the state that has just been saved; says so if it is the best so far."""
    metrics, words = _validate(run, state, step, stop)
    chosen_by = run.config.best_metric
    best_step = run.checkpoints.best_step()
    best = -1.0 if best_step is None else run.checkpoints.metrics(best_step).get(chosen_by, -1.0)
    epoch = step // run.plan.steps_per_epoch
    run.log.say(f"END epoch {epoch}/{run.config.epochs}  {words}")
    if warning := accuracy.warning(metrics, run.class_names):
        run.log.say(f"warning: {warning}")
    run.log.record("val", step, metrics)
    if not math.isfinite(metrics["loss"]):
        run.log.say("the validation's loss is not finite: this cannot be the best model")
    elif metrics[chosen_by] > best:
        # The reference's line: the accuracy as a fraction, truncated to four digits. Rounded first:
        # 0.3825 as a mean of recalls is 0.38249999999999995.
        truncated = int(round(metrics[chosen_by] * 10000, 6)) / 10000
        name = "top1 acc" if chosen_by == "top1" else chosen_by
        run.log.say(f"Already save the best model ({name}){truncated}")
        run.log.record("best", step, {chosen_by: metrics[chosen_by]})
    run.checkpoints.add_validation(step, metrics)


def _leave_last_finite(run: TrainingRun, state: TrainState, stop: Callable[[], bool]) -> None:
    """Saves and validates the state before the step that stopped the run; it is never the best."""
    state = last_finite(state, run.config.max_bad_steps)
    step = int(state.step)
    run.checkpoints.save(state, run.config, run.progress.to_save())
    try:
        _, words = _validate(run, state, step, stop)
        run.log.say(
            f"the state before, of step {step}: {words}; saved in {run.checkpoints.path(step)}"
        )
    except UserError as error:  # the caller raises the step's error, which matters more
        run.log.say(f"the state before, of step {step}, cannot be validated: {error}")
    run.checkpoints.wait()
