"""What a run tells: lines (and a progress bar) on the console, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Writes what happened; silent on every process but the first.

    Args:
        workdir: of the run.
        first_step: where this process starts. Lines of later steps, left over from a process that
            was killed after its last checkpoint, are removed: they will be written again.
        total_steps: of the run.
        enabled: False on all processes but the first.
    """

    def __init__(self, workdir: str, *, first_step: int, total_steps: int, enabled: bool = True):
        self.enabled = enabled
        self._console = Console(highlight=False, quiet=not enabled, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not (enabled and self._console.is_terminal),
        )
        self._training = self._progress.add_task("train", total=total_steps, completed=first_step)
        self._file = self._events = None
        if enabled:
            path = os.path.join(workdir, METRICS_FILE)
            _forget_after(path, first_step)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
            events = os.path.join(workdir, "tensorboard")
            self._events = SummaryWriter(events, purge_step=first_step)

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        if self._file and self._events:
            self._file.close()
            self._events.close()

    def say(self, text: str) -> None:
        """A line on the console."""
        self._console.print(text, markup=False)

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and one point a number in TensorBoard.

        Args:
            kind: `train` or `val`.
            step: optimizer steps done.
            values: plain numbers.
        """
        if not (self._file and self._events):
            return
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, step)

    def trained_one_step(self) -> None:
        self._progress.advance(self._training)

    @contextmanager
    def validation(self, batches: int) -> Iterator[Callable[[], None]]:
        """Shows a bar of its own for a validation; gives what to call after each batch."""
        task = self._progress.add_task("validate", total=batches)
        try:
            yield lambda: self._progress.advance(task)
        finally:
            self._progress.remove_task(task)


def _forget_after(path: str, step: int) -> None:
    if not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        lines = [line for line in file if _step_of(line) <= step]
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        file.writelines(lines)
    os.replace(path + ".tmp", path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the half line of a killed process
        return float("inf")


class StepTimer:
    """Where a training step's time goes, averaged since the last `lap`."""

    def __init__(self) -> None:
        self._reading = 0.0
        self.lap()

    def lap(self) -> None:
        """Starts a new interval."""
        self._start, self._steps, self._reading = time.perf_counter(), 0, 0.0

    def count(self, reading_seconds: float) -> None:
        """A step is done; `reading_seconds` of it went by waiting for the batch."""
        self._steps += 1
        self._reading += reading_seconds

    @property
    def batch_seconds(self) -> float:
        return (time.perf_counter() - self._start) / max(self._steps, 1)

    @property
    def reader_seconds(self) -> float:
        return self._reading / max(self._steps, 1)


def duration(seconds: float) -> str:
    """`h:mm:ss`."""
    return str(timedelta(seconds=round(seconds)))
