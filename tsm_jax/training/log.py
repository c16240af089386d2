"""What a run reports: lines and a bar on the console, metrics.jsonl, TensorBoard and others."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from tsm_jax.config import Plan
from tsm_jax.data.pipeline import TrainOrder
from tsm_jax.errors import UserError
from tsm_jax.files import check_regular, reason, write_text
from tsm_jax.terminal import printable, progress_bar
from tsm_jax.training.metrics import Meter
from tsm_jax.training.state import Diverged
from tsm_jax.training.tensorboard import TensorBoard
from tsm_jax.training.timing import RemainingTime, StepTimer

METRICS_FILE = "metrics.jsonl"


class Logger(Protocol):
    """Where the numbers of a run go, besides metrics.jsonl."""

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Takes the numbers of `step`; an OSError ends the run with its text."""

    def close(self) -> None:
        """After the last of them."""


class RunLog:
    """Writes what happened; silent on every process but the first.

    Args:
        workdir: of the run.
        first_step: where this process starts. Lines of later steps, left over from a process that
            was killed after its last checkpoint, are removed: they will be written again.
        validated: whether the validation at `first_step` is done; otherwise it will be done again,
            and its lines are removed as well.
        enabled: False on all processes but the first.
        loggers: what else receives the numbers.

    Raises:
        UserError: a file cannot be written, here and in `record`.
    """

    def __init__(
        self,
        workdir: str,
        *,
        first_step: int,
        validated: bool = True,
        enabled: bool = True,
        loggers: Sequence[Logger] = (),
    ):
        self._workdir = workdir
        self._enabled = enabled
        self._bar, self._bar_title = ExitStack(), ""
        if enabled:
            path = os.path.join(workdir, METRICS_FILE)
            with self._as_user_error():
                _forget_after(path, first_step, validated)
                self._file = open(path, "ab", buffering=0)  # noqa: SIM115
                tensorboard = TensorBoard(os.path.join(workdir, "tensorboard"), first_step)
            self._loggers = (tensorboard, *loggers)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._enabled:
            self._file.close()
            for logger in self._loggers:
                with suppress(OSError):  # all is there already, or the failure has been raised
                    logger.close()

    def say(self, text: str) -> None:
        """Prints a line."""
        if self._enabled:
            print(printable(text), flush=True)

    def show(self, title: str, done: int, total: int, note: str = "") -> None:
        """Draws a progress bar, in place of the one with another title; `note` stands beside it."""
        if not self._enabled:
            return
        if title != self._bar_title:
            self._bar.close()
            self._update_bar = self._bar.enter_context(progress_bar(title))
            self._bar_title = title
        self._update_bar(done, total, note)

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Writes one line of metrics.jsonl, and gives its numbers to the loggers.

        Args:
            kind: `train`, `val`, `best`, `bad_step` or `diverged`.
            step: optimizer steps done.
            values: numbers (one that is not finite becomes null), texts, lists of texts.
        """
        if not self._enabled:
            return
        values = {name: _finite(value) for name, value in values.items()}
        line = json.dumps({"kind": kind, "step": step, **values}) + "\n"
        numbers = {name: v for name, v in values.items() if isinstance(v, (int, float))}
        with self._as_user_error():
            if self._file.write(line.encode()) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for logger in self._loggers:
                logger.write(kind, step, numbers)

    @contextmanager
    def _as_user_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write the log in {self._workdir}: {reason(error)}: make room or choose"
                " another --config.workdir, and run the same command again"
            ) from error


def _forget_after(path: str, step: int, validated: bool) -> None:
    if not os.path.lexists(path):
        return
    check_regular(path, "the log")
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.rstrip("\n") for line in file if _is_before(line, step, validated)]
    write_text(path, "".join(f"{line}\n" for line in lines))


def _is_before(line: str, step: int, validated: bool) -> bool:
    try:
        values = json.loads(line)
        to_do = not validated and values["kind"] in ("val", "best")
        return values["step"] < step or (values["step"] == step and not to_do)
    except (ValueError, KeyError, TypeError, RecursionError):  # half a line of a killed process
        return False


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class StartedStep:
    """A step that the devices work on."""

    number: int  # steps before it
    reading: float  # seconds that the loop waited for its batch
    clips: np.ndarray  # this process's part of the batch, int64 [B]
    metrics: dict[str, jax.Array]  # on the devices


class Progress:
    """Averages over the steps since the last log line, and writes that line.

    Args:
        order: which clip belongs where, to notice replaced ones.
        clip_name: path of a training clip by its number.
        val_clips: how many there are, to tell the remaining time before the first validation.
        first_step: of this process.
        saved: what `to_save` gave at that step; None at the beginning of a run.
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
            self._report_bad_step(step.number + 1, clips)
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
        done = step.number + 1
        self._log.show("train", done, self._plan.total_steps, self._note(done))

    def validating(self, done: int, batch: int, batches: int) -> None:
        """Shows that `batch` of the validation after `done` steps is done."""
        self._log.show("validate", batch, batches, self._note(done, batch / batches))

    def validated(self, seconds: float) -> None:
        """Takes note of how long a validation took."""
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
        """The global batch, and how many of this process's clips replace unreadable ones."""
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
            f" {', '.join(clips[:4])} (all {len(clips)} in {METRICS_FILE})"
        )
        if bad_steps > allowed:
            # Not recorded as a bad step: the run may be continued from the step before.
            self._log.record("diverged", done - 1, {"bad_step": done, "clips": clips})
            raise Diverged(
                f"{what}: look at these clips, lower config.optimizer.learning_rate in a new"
                f" workdir, or continue without them by --config.max_bad_steps={allowed + 1}"
            )
        self._log.record("bad_step", done, {"bad_steps": bad_steps, "clips": clips})
        self._log.say(f"{what}: skipped ({bad_steps} of {allowed})")

    def report(self, done: int) -> None:
        """Writes the log line of `done` steps."""
        means = self._meter.result(self._config.model.num_classes)
        values = {
            "epoch": self._epoch(done),
            **{name: means[name] for name in means if name != "count"},
            "learning_rate": float(self._last["learning_rate"]),
            "grad_norm": float(self._last["grad_norm"]),
            "replaced_clips": self._replaced,
            "bad_steps": int(self._last["bad_steps"]),
        }
        batch_seconds = self._timer.batch_seconds
        speed = {
            "batch_seconds": batch_seconds,
            "reader_seconds": self._timer.reader_seconds,
            "clips_per_second": batch_seconds and self._config.batch_size / batch_seconds,
        }
        self._log.record("train", done, {**values, **speed})
        self._log.say(self._line(done, values, speed))
        self._meter = Meter()
        self._timer.lap()

    def _line(self, done: int, values: dict[str, Any], speed: dict[str, float | None]) -> str:
        plan, replaced = self._plan, values["replaced_clips"]
        line = (
            f"epoch {values['epoch']}/{self._config.epochs}"
            f"  step {plan.step_in_epoch(done)}/{plan.steps_per_epoch}"
            f"  loss {values['loss']:.5f}  top1 {values['top1']:.5f}"
            f"  lr {values['learning_rate']:.6f}"
        )
        if speed["batch_seconds"] is not None:
            left = self._remaining.seconds(done) or 0.0
            line += (
                f"  batch {speed['batch_seconds']:.3f} s  reader {speed['reader_seconds']:.3f} s"
                f"  {speed['clips_per_second']:.1f} clips/s  ETA {_in_words(left)}"
            )
        return line + (f"  replaced {replaced}" if replaced else "")


def _in_words(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
