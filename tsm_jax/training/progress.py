"""Contents of a run's log lines: averages since the previous line, speed and remaining time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tsm_jax.config import Plan
from tsm_jax.data.pipeline import TrainOrder
from tsm_jax.training.log import METRICS_FILE, RunLog
from tsm_jax.training.metrics import Meter
from tsm_jax.training.state import Diverged

# Weights of a new time in the moving averages: about the last 50 steps and 3 validations count.
_STEP_WEIGHT, _VALIDATION_WEIGHT = 0.02, 0.5


@dataclass(frozen=True)
class StartedStep:
    """A step that the devices are working on."""

    number: int  # number of steps before it
    reading: float  # seconds that the loop waited for its batch
    clips: np.ndarray  # numbers of the clips in this process's part of the batch, int64 [B]
    metrics: dict[str, jax.Array]  # on the devices


class Progress:
    """Averages metrics over the steps since the previous log line, and writes log lines.

    Args:
        order: order of the training clips, to detect replaced ones.
        clip_name: returns the path of a training clip by its number.
        val_clips: number of validation clips, to estimate the remaining time before the first
            validation.
        first_step: the step at which this process starts.
        saved: what `to_save` returned at that step; None for a new run.
    """

    def __init__(
        self,
        log: RunLog,
        config: ConfigDict,
        plan: Plan,
        *,
        order: TrainOrder,
        clip_name: Callable[[int], str],
        val_clips: int,
        first_step: int,
        saved: dict[str, Any] | None = None,
    ):
        self._log, self._config, self._plan = log, config, plan
        self._order, self._clip_name, self._first_step = order, clip_name, first_step
        self._meter = Meter(dict(saved["sums"])) if saved else Meter()
        self._replaced = saved["replaced_clips"] if saved else 0
        self._last: dict[str, np.ndarray] = {}
        self._timer, self._last_finished = StepTimer(), time.perf_counter()
        # A clip's forward pass is about a third of its training.
        self._remaining = RemainingTime(plan, val_clips / config.batch_size / 3)

    def to_save(self) -> dict[str, Any]:
        """Returns plain numbers from which another process can continue."""
        return {"sums": self._meter.sums, "replaced_clips": self._replaced}

    def finished(self, step: StartedStep) -> None:
        """Waits for a step's metrics and adds them up.

        Raises:
            Diverged: the step is not finite, and no more such steps may be skipped.
        """
        self._last = jax.device_get(step.metrics)
        done = step.number + 1
        clips, replaced = self._clips(step)
        if self._last["bad"]:
            self._report_bad_step(done, clips)
        else:
            self._meter.update(self._last)
        self._replaced += replaced
        now = time.perf_counter()
        if step.number == self._first_step:
            self._timer.lap()  # the first step compiles; its time would distort the average
        else:
            self._timer.count(step.reading)
            self._remaining.step.add(now - self._last_finished)
        self._last_finished = now
        self._log.show("train", done, self._plan.total_steps, self._note(done))

    def validating(self, done: int, batch: int, batches: int) -> None:
        """Shows that `batch` batches of the validation after `done` steps are finished."""
        self._log.show("validate", batch, batches, self._note(done, batch / batches))

    def validated(self, seconds: float) -> None:
        """Records how many seconds a validation took."""
        self._remaining.validation.add(seconds)
        self._timer.lap()
        self._last_finished = time.perf_counter()

    def _note(self, done: int, validated: float = 0.0) -> str:
        note = f"epoch {self._epoch(done)}/{self._config.epochs}"
        left = self._remaining.seconds(done, validated)
        return note if left is None else f"{note}  ETA {_in_words(left)}"

    def _epoch(self, done: int) -> int:
        return max(done - 1, 0) // self._plan.steps_per_epoch + 1

    def _clips(self, step: StartedStep) -> tuple[np.ndarray, int]:
        """Returns the global batch, and how many of our clips in it replace unreadable ones."""
        clips = self._order.batch(step.number)
        start = jax.process_index() * len(step.clips)
        own = slice(start, start + len(step.clips))
        replaced = int((clips[own] != step.clips).sum())
        clips[own] = step.clips
        return clips, replaced

    def _report_bad_step(self, done: int, indices: np.ndarray) -> None:
        bad_steps, allowed = int(self._last["bad_steps"]), self._config.max_bad_steps
        clips = [self._clip_name(int(index)) for index in indices]
        loss, norm = (float(self._last[name]) for name in ("loss", "grad_norm"))
        update = math.isfinite(loss) and math.isfinite(norm)
        what = (
            f"{'the update of ' if update else ''}step {done} is not finite: loss"
            f" {loss / len(clips):.5g}, gradient norm {norm:.5g}, on the clips"
            f" {', '.join(clips[:4])} ({METRICS_FILE} lists all {len(clips)})"
        )
        if bad_steps > allowed:
            # Not recorded as a bad step: the run may be continued from the previous step.
            self._log.record("diverged", done - 1, {"bad_step": done, "clips": clips})
            raise Diverged(
                f"{what}: check these clips, lower config.optimizer.learning_rate in a new workdir,"
                f" or continue without this step by --config.max_bad_steps={allowed + 1}"
            )
        self._log.record("bad_step", done, {"bad_steps": bad_steps, "clips": clips})
        self._log.say(f"{what}: skipped ({bad_steps} of {allowed})")

    def report(self, done: int) -> None:
        """Writes the log line after `done` steps."""
        means = self._meter.result(self._config.model.num_classes)
        batch_seconds = self._timer.batch_seconds
        values = {
            "epoch": self._epoch(done),
            **{name: means[name] for name in means if name != "count"},
            "learning_rate": float(self._last["learning_rate"]),
            "grad_norm": float(self._last["grad_norm"]),
            "replaced_clips": self._replaced,
            "bad_steps": int(self._last["bad_steps"]),
            "batch_seconds": batch_seconds,
            "reader_seconds": self._timer.reader_seconds,
            "clips_per_second": batch_seconds and self._config.batch_size / batch_seconds,
        }
        self._log.record("train", done, values)
        self._log.say(self._line(done, values))
        self._meter = Meter()
        self._timer.lap()

    def _line(self, done: int, values: dict[str, Any]) -> str:
        line = (
            f"epoch {values['epoch']}/{self._config.epochs}"
            f"  step {self._plan.step_in_epoch(done)}/{self._plan.steps_per_epoch}"
            f"  loss {values['loss']:.5f}  top1 {values['top1']:.5f}"
            f"  lr {values['learning_rate']:.6f}"
        )
        if values["batch_seconds"] is not None:
            left = self._remaining.seconds(done) or 0.0
            line += (
                f"  batch {values['batch_seconds']:.3f} s  reader {values['reader_seconds']:.3f} s"
                f"  {values['clips_per_second']:.1f} clips/s  ETA {_in_words(left)}"
            )
        return line + (f"  replaced {self._replaced}" if self._replaced else "")


def _in_words(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class StepTimer:
    """Measures where the time of training steps goes, averaged since the last `lap`."""

    def __init__(self) -> None:
        self.lap()

    def lap(self) -> None:
        """Starts a new interval."""
        self._start, self._steps, self._reading = time.perf_counter(), 0, 0.0

    def count(self, reading_seconds: float) -> None:
        """Counts a step that waited `reading_seconds` for its batch."""
        self._steps += 1
        self._reading += reading_seconds

    @property
    def batch_seconds(self) -> float | None:
        """Seconds per step; None if no step has been timed, as after the first, which compiles."""
        return (time.perf_counter() - self._start) / self._steps if self._steps else None

    @property
    def reader_seconds(self) -> float | None:
        return self._reading / self._steps if self._steps else None


class MovingAverage:
    """An exponential moving average that starts as the plain mean of the first values."""

    def __init__(self, weight: float):
        self._weight, self._count = weight, 0
        self.value: float | None = None

    def add(self, value: float) -> None:
        self._count += 1
        weight = max(self._weight, 1 / self._count)
        self.value = value if self.value is None else self.value + weight * (value - self.value)


class RemainingTime:
    """Estimates the time to the end of a run, including its validations.

    Args:
        validation_steps: cost of a validation in training steps, used until one has been timed.
    """

    def __init__(self, plan: Plan, validation_steps: float):
        self._plan, self._validation_steps = plan, validation_steps
        self.step = MovingAverage(_STEP_WEIGHT)  # seconds
        self.validation = MovingAverage(_VALIDATION_WEIGHT)  # seconds

    def seconds(self, done: int, validated: float = 0.0) -> float | None:
        """Returns the seconds that remain after `done` steps; None before a step was timed.

        Args:
            done: number of completed steps. After the last one of an epoch, its validation is still
                to come.
            validated: completed fraction of that validation, 0 to 1.
        """
        if self.step.value is None:
            return None
        validation = self.validation.value
        if validation is None:
            validation = self._validation_steps * self.step.value
        begun = max(done - 1, 0) // self._plan.steps_per_epoch  # epochs before the current one
        epochs = self._plan.total_steps // self._plan.steps_per_epoch
        steps = (self._plan.total_steps - done) * self.step.value
        return steps + (epochs - begun - validated) * validation
