"""The training loop: steps, log lines, checkpoints, and validation after every epoch."""

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

# Returns means over the validation clips for a state. Calls the second argument after every batch
# with the number of finished batches and the total number of batches.
Validate = Callable[[TrainState, Callable[[int, int], None]], dict[str, float]]
# Returns the state with a part of it recomputed from whole batches. Calls the last argument before
# each batch. The step is an argument because reading it from the state would wait for the devices.
FromBatches = Callable[[TrainState, int, Callable[[], None]], TrainState]


@dataclass(frozen=True)
class TrainingRun:
    """Everything that a run needs to start."""

    config: ConfigDict
    plan: Plan
    mesh: Mesh
    class_names: Sequence[str]
    first_step: int  # of this process
    train_step: TrainStep
    validate: Validate
    compute_statistics: FromBatches | None  # of batch norm; None if the recipe has it turned off
    refit_classifier: FromBatches | None
    checkpoints: Checkpoints
    log: RunLog
    progress: Progress
    preemption: Preemption


def train(run: TrainingRun, state: TrainState, batches: Iterator[Batch]) -> TrainState:
    """Trains until the plan ends or `config.patience` runs out.

    Args:
        run: what to train, and with what.
        state: the state at `run.first_step`; its memory is reused.
        batches: this host's part of the batches, starting at `run.first_step`.

    Returns:
        The final state. It has been saved, and so has the best one.

    Raises:
        Preempted: a signal asked the run to stop; its checkpoints are on disk.
        Diverged: too many steps were not finite; the state before the last of them is saved.
        UserError: a file cannot be read or written.
    """
    stop = stop_vote(run.preemption, run.mesh)
    first_step, progress, every = run.first_step, run.progress, run.config.checkpoint_every
    validated = from_first(run.checkpoints.validated(first_step))
    if run.plan.ends_epoch(first_step) and not validated:
        _validate_epoch(run, state, first_step, stop)  # the previous process stopped before it
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
            # One step late, so that the devices have the next step to work on in the meantime.
            if pending is not None:
                progress.finished(pending)
            pending = StartedStep(step, reading, batch["index"], metrics)
            if reports or saves:
                progress.finished(pending)
                pending = None
        except Diverged:
            _save_last_finite(run, state, stop)
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
    """Yields the steps to train, until the plan ends or the patience runs out."""
    for step in range(run.first_step, run.plan.total_steps):
        if run.plan.ends_epoch(step) and _out_of_patience(run, step):
            return
        yield step


def _out_of_patience(run: TrainingRun, step: int) -> bool:
    """Returns whether `config.patience` ends the run at this step.

    This depends on the checkpoints alone, so a continued run ends at the same step.
    """
    best_step = from_first(run.checkpoints.best_step() or 0)
    epochs = (step - best_step) // run.plan.steps_per_epoch
    if not 0 < run.config.patience <= epochs:
        return False
    run.log.say(
        f"{run.config.best_metric} has not improved for {epochs} epochs, since step {best_step}:"
        " stopping early (config.patience)"
    )
    return True


def _ends_precise_epoch(run: TrainingRun, step: int) -> bool:
    """Returns whether an epoch ends here to which `config.precise_batch_norm` applies."""
    if not run.plan.ends_epoch(step):
        return False
    epoch = step // run.plan.steps_per_epoch
    return (epoch - 1) % run.config.precise_batch_norm == 0 or epoch == run.config.epochs


def _finish_epoch(
    run: TrainingRun, state: TrainState, step: int, preempted: bool, stop: Callable[[], bool]
) -> TrainState:
    """Returns the state after the computations from whole batches that are due at this step."""

    def before_batch() -> None:
        # This step is not saved: its checkpoint would not show that a computation is missing.
        if preempted or stop():
            raise _preempted(run, step, "steps since the last checkpoint will be repeated")

    computations: dict[str, FromBatches] = {}
    if run.compute_statistics and _ends_precise_epoch(run, step):
        computations["batch-norm statistics"] = run.compute_statistics
    if run.refit_classifier and step == run.plan.total_steps:
        computations["classifier"] = run.refit_classifier
    for name, compute in computations.items():
        started = time.perf_counter()
        found = compute(state, step, before_batch)
        tensors = (*found.params.values(), *found.batch_stats.values())
        if all(np.isfinite(np.asarray(tensor)).all() for tensor in tensors):
            seconds = time.perf_counter() - started
            run.log.say(f"computed the {name} from whole batches in {seconds:.1f} s")
            state = found
        else:
            run.log.say(
                f"warning: computing the {name} from whole batches gave values that are not finite;"
                " the previous values are kept"
            )
    return state


def _preempted(run: TrainingRun, step: int, what: str = "everything is saved") -> Preempted:
    """Returns the exception to raise, once all checkpoints are on disk."""
    run.checkpoints.wait()
    return Preempted(f"stopped at step {step} because of a signal; {what}")


def _validate(
    run: TrainingRun, state: TrainState, step: int, stop: Callable[[], bool]
) -> tuple[dict[str, float], str]:
    """Returns means over the validation clips, and the same as text.

    Can be stopped after any batch.
    """

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
    """Validates the state that has just been saved, and reports if it is the best so far."""
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
        run.log.say("the validation loss is not finite: this cannot become the best model")
    elif metrics[chosen_by] > best:
        # The reference prints this line, with the accuracy as a fraction truncated to four digits.
        # It is rounded first: as a mean of recalls, 0.3825 is 0.38249999999999995.
        truncated = int(round(metrics[chosen_by] * 10000, 6)) / 10000
        name = "top1 acc" if chosen_by == "top1" else chosen_by
        run.log.say(f"Already save the best model ({name}){truncated}")
        run.log.record("best", step, {chosen_by: metrics[chosen_by]})
    run.checkpoints.add_validation(step, metrics)


def _save_last_finite(run: TrainingRun, state: TrainState, stop: Callable[[], bool]) -> None:
    """Saves and validates the state before the step that stopped the run.

    It never becomes the best one.
    """
    state = last_finite(state, run.config.max_bad_steps)
    step = int(state.step)
    run.checkpoints.save(state, run.config, run.progress.to_save())
    try:
        _, words = _validate(run, state, step, stop)
        run.log.say(
            f"last finite state (step {step}): {words}; saved in {run.checkpoints.path(step)}"
        )
    except UserError as error:  # the caller raises the step's error, which matters more
        run.log.say(f"the last finite state (step {step}) cannot be validated: {error}")
    run.checkpoints.wait()
