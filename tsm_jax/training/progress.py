"""What a log line says: averages over the steps since the one before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from tsm_jax.training.bad_steps import Diverged, name_some
from tsm_jax.training.metrics import Meter
from tsm_jax.training.run import Run
from tsm_jax.training.run_log import METRICS_FILE, StepTimer, duration


@dataclass(frozen=True)
class StartedStep:
    """A step that the devices work on.

    Attributes:
        number: steps before it.
        reading: seconds that the loop waited for its batch.
        clips: this process's part of the batch, int64 `[B]`.
        metrics: on the devices.
    """

    number: int
    reading: float
    clips: np.ndarray
    metrics: dict[str, jax.Array]


class Progress:
    """Averages over the steps since the last log line.

    Args:
        run: whose log it writes.
        first_step: of this process.
        saved: what `to_save` gave at that step; None at the beginning of a run.
    """

    def __init__(self, run: Run, first_step: int, saved: dict[str, Any] | None = None):
        self._run = run
        self._first_step = first_step
        self._meter = Meter(dict(saved["sums"])) if saved else Meter()
        self._replaced = saved["replaced_clips"] if saved else 0
        self._last: dict[str, np.ndarray] = {}
        self.timer = StepTimer()

    def to_save(self) -> dict[str, Any]:
        """Plain numbers from which another process goes on."""
        return {"sums": self._meter.sums, "replaced_clips": self._replaced}

    def finished(self, step: StartedStep) -> None:
        """Waits for a step's metrics and adds them up.

        Raises:
            Diverged: the step is not finite, and no more of those may be skipped.
        """
        self._last = jax.device_get(step.metrics)
        clips, replaced = self._clips(step)
        if self._last["bad"]:
            self._tell_bad(step.number, clips)
        else:
            self._meter.update(self._last)
        self._replaced += replaced
        self._run.log.trained_one_step()
        if step.number == self._first_step:
            self.timer.lap()  # the first step compiles; its time would distort the average
        else:
            self.timer.count(step.reading)

    def _clips(self, step: StartedStep) -> tuple[np.ndarray, int]:
        """The global batch, and how many of this process's clips stand in for unreadable ones."""
        clips = self._run.order.batch(step.number)
        start = jax.process_index() * len(step.clips)
        own = slice(start, start + len(step.clips))
        replaced = int((clips[own] != step.clips).sum())
        clips[own] = step.clips
        return clips, replaced

    def _tell_bad(self, step: int, indices: np.ndarray) -> None:
        run, done = self._run, step + 1
        bad_steps, allowed = int(self._last["bad_steps"]), run.config.max_bad_steps
        clips = [run.clip_name(int(index)) for index in indices]
        loss, norm = (float(self._last[name]) for name in ("loss", "grad_norm"))
        update = math.isfinite(loss) and math.isfinite(norm)
        what = (
            f"{'the update of ' if update else ''}step {done} is not finite: loss"
            f" {loss / len(clips):.5g}, gradient norm {norm:.5g}, on the clips"
            f" {name_some(clips)} (all in {METRICS_FILE})"
        )
        if bad_steps > allowed:
            # Not recorded as a bad step: the run may be continued from the step before.
            run.log.record("diverged", step, {"bad_step": done, "clips": clips})
            raise Diverged(
                f"{what}: look at these clips, lower config.optimizer.learning_rate in a new"
                f" workdir, or continue without them by --config.max_bad_steps={allowed + 1}"
            )
        run.log.record("bad_step", done, {"bad_steps": bad_steps, "clips": clips})
        run.log.say(f"{what}: skipped ({bad_steps} of {allowed})")

    def report(self, done: int) -> None:
        """The log line of `done` steps."""
        run, means = self._run, self._meter.result(self._run.config.model.num_classes)
        values = {
            "epoch": (done - 1) // run.plan.steps_per_epoch + 1,
            **{name: means[name] for name in means if name != "count"},
            "learning_rate": float(self._last["learning_rate"]),
            "grad_norm": float(self._last["grad_norm"]),
            "replaced_clips": self._replaced,
            "bad_steps": int(self._last["bad_steps"]),
        }
        batch_seconds = self.timer.batch_seconds
        speed = {
            "batch_seconds": batch_seconds,
            "reader_seconds": self.timer.reader_seconds,
            "clips_per_second": batch_seconds and run.config.batch_size / batch_seconds,
        }
        run.log.record("train", done, {**values, **speed})
        run.log.say(self._line(done, values, speed))
        self._meter = Meter()
        self.timer.lap()

    def _line(self, done: int, values: dict, speed: dict) -> str:
        plan, epochs = self._run.plan, self._run.config.epochs
        step = (done - 1) % plan.steps_per_epoch + 1
        replaced = f"  replaced {values['replaced_clips']}" if values["replaced_clips"] else ""
        return (
            f"epoch {values['epoch']}/{epochs}  step {step}/{plan.steps_per_epoch}"
            f"  loss {values['loss']:.5f}  top1 {values['top1']:.5f}"
            f"  lr {values['learning_rate']:.6f}{self._speed(done, speed)}{replaced}"
        )

    def _speed(self, done: int, speed: dict[str, float | None]) -> str:
        if speed["batch_seconds"] is None:
            return ""
        eta = duration((self._run.plan.total_steps - done) * speed["batch_seconds"])
        return (
            f"  batch {speed['batch_seconds']:.3f} s  reader {speed['reader_seconds']:.3f} s"
            f"  {speed['clips_per_second']:.1f} clips/s  ETA {eta}"
        )
