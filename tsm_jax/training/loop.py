"""The training loop: steps, log lines, validation after every epoch, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tsm_jax.config import Plan
from tsm_jax.data.pipeline import Batch, TrainOrder
from tsm_jax.errors import UserError
from tsm_jax.training.checkpoint import Checkpoints
from tsm_jax.training.evaluation import ON_DEVICE
from tsm_jax.training.mesh import put_batch
from tsm_jax.training.metrics import Meter
from tsm_jax.training.run_log import RunLog, StepTimer, duration
from tsm_jax.training.state import TrainState
from tsm_jax.training.steps import TrainStep


@dataclass(frozen=True)
class Run:
    """What the loop works with.

    Attributes:
        config: the recipe.
        plan: the recipe in steps.
        mesh: the devices.
        order: which clip stands where, to notice replaced ones.
        train_step: one optimizer step.
        validate: means over the validation clips for a state.
        checkpoints: of the run.
        log: of the run.
    """

    config: ConfigDict
    plan: Plan
    mesh: Mesh
    order: TrainOrder
    train_step: TrainStep
    validate: Callable[[TrainState], dict[str, float]]
    checkpoints: Checkpoints
    log: RunLog


def train(run: Run, state: TrainState, batches: Iterator[Batch]) -> TrainState:
    """Trains to the end of the plan.

    Args:
        run: what to work with.
        state: where to start; its memory is reused.
        batches: this host's part of the batches from `state.step` on.

    Returns:
        The last state. It is saved, and so is the best one.
    """
    first_step = int(state.step)
    progress = _Progress(run, first_step)
    pending = None
    for step in range(first_step, run.plan.total_steps):
        started = time.perf_counter()
        batch = next(batches)
        reading = time.perf_counter() - started
        progress.count_replaced(step, batch["index"])

        device_batch = put_batch({name: batch[name] for name in ON_DEVICE}, run.mesh)
        state, metrics = run.train_step(state, device_batch)
        # One step behind: the devices always have the next step to do while the host reads.
        if pending is not None:
            progress.finished(*pending)
        pending = (step, reading, metrics)

        done = step + 1
        done_in_epoch = step % run.plan.steps_per_epoch + 1
        ends_epoch = done_in_epoch == run.plan.steps_per_epoch
        if ends_epoch or done_in_epoch % run.config.log_every == 0:
            progress.finished(*pending)
            pending = None
            progress.report(done)
        if ends_epoch:
            validate_and_save(run, state, done)
            progress.timer.lap()
        elif run.config.checkpoint_every and done % run.config.checkpoint_every == 0:
            run.checkpoints.save(state, run.config)
    run.checkpoints.wait()
    return state


def validate_and_save(run: Run, state: TrainState, step: int) -> None:
    """Validates, saves, and says so when this is the best accuracy so far."""
    started = time.perf_counter()
    metrics = run.validate(state)
    seconds = time.perf_counter() - started
    best_step = run.checkpoints.best_step()
    best = -1.0 if best_step is None else run.checkpoints.metrics(best_step)["top1"]
    run.checkpoints.save(state, run.config, metrics)
    run.log.record("val", step, metrics)
    epoch = step // run.plan.steps_per_epoch
    run.log.say(
        f"END epoch {epoch}/{run.config.epochs}  val loss {metrics['loss']:.5f}"
        f"  top1 {metrics['top1']:.5f}  top5 {metrics['top5']:.5f}"
        f"  {metrics['count']} clips in {seconds:.1f} s"
    )
    if metrics["top1"] > best:
        # The reference's line: the accuracy as a fraction, truncated to four digits.
        truncated = int(metrics["top1"] * 10000) / 10000
        run.log.say(f"Already save the best model (top1 acc){truncated}")
        run.log.record("best", step, {"top1": metrics["top1"]})


class _Progress:
    """Averages over the steps since the last log line."""

    def __init__(self, run: Run, first_step: int):
        self._run = run
        self._first_step = first_step
        self._meter = Meter()
        self._last: dict[str, np.ndarray] = {}
        self._replaced = 0
        self.timer = StepTimer()

    def count_replaced(self, step: int, indices: np.ndarray) -> None:
        """Counts the clips of a batch that stand in for unreadable ones."""
        size, process = len(indices), jax.process_index()
        expected = self._run.order.batch(step)[process * size : (process + 1) * size]
        self._replaced += int((indices != expected).sum())

    def finished(self, step: int, reading: float, metrics: dict[str, jax.Array]) -> None:
        """Waits for a step's metrics and adds them up."""
        self._last = jax.device_get(metrics)
        self._meter.update(self._last)
        self._run.log.trained_one_step()
        if step == self._first_step:
            self.timer.lap()  # the first step compiles; its time would distort the average
        else:
            self.timer.count(reading)

    def report(self, done: int) -> None:
        """The log line of `done` steps; raises if the loss is no number any more."""
        run, means = self._run, self._meter.result()
        values = {
            "epoch": (done - 1) // run.plan.steps_per_epoch + 1,
            "loss": means["loss"],
            "top1": means["top1"],
            "top5": means["top5"],
            "learning_rate": float(self._last["learning_rate"]),
            "grad_norm": float(self._last["grad_norm"]),
            "replaced_clips": self._replaced,
        }
        batch_seconds = self.timer.batch_seconds
        speed = {
            "batch_seconds": batch_seconds,
            "reader_seconds": self.timer.reader_seconds,
            "clips_per_second": run.config.batch_size / max(batch_seconds, 1e-9),
        }
        run.log.record("train", done, {**values, **speed})
        run.log.say(self._line(done, values, speed))
        if not np.isfinite(means["loss"]):
            raise UserError(
                f"the loss is {means['loss']} at step {done}: lower config.optimizer.learning_rate"
                " (checkpoints of earlier steps are kept)"
            )
        self._meter = Meter()
        self.timer.lap()

    def _line(self, done: int, values: dict, speed: dict) -> str:
        plan, epochs = self._run.plan, self._run.config.epochs
        step = (done - 1) % plan.steps_per_epoch + 1
        eta = duration((plan.total_steps - done) * speed["batch_seconds"])
        replaced = f"  replaced {values['replaced_clips']}" if values["replaced_clips"] else ""
        return (
            f"epoch {values['epoch']}/{epochs}  step {step}/{plan.steps_per_epoch}"
            f"  loss {values['loss']:.5f}  top1 {values['top1']:.5f}"
            f"  lr {values['learning_rate']:.6f}  batch {speed['batch_seconds']:.3f} s"
            f"  reader {speed['reader_seconds']:.3f} s"
            f"  {speed['clips_per_second']:.1f} clips/s  ETA {eta}{replaced}"
        )
