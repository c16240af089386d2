"""What a run tells: lines (and a progress bar) on the console, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tsm_jax.errors import UserError
from tsm_jax.files import check_regular, reason, write_text
from tsm_jax.terminal import printable
from tsm_jax.training.event_file import EventFile

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Writes what happened; silent on every process but the first.

    Args:
        workdir: of the run.
        first_step: where this process starts. Lines of later steps, left over from a process that
            was killed after its last checkpoint, are removed: they will be written again.
        total_steps: of the run.
        validated: whether the validation at `first_step` is done; otherwise it will be done again,
            and its lines are removed as well.
        enabled: False on all processes but the first.

    Raises:
        UserError: a file cannot be written, here and in `record`.
    """

    def __init__(
        self,
        workdir: str,
        *,
        first_step: int,
        total_steps: int,
        validated: bool = True,
        enabled: bool = True,
    ):
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
            with _told_in_one_line(workdir):
                _forget_after(path, first_step, validated)
                self._file = open(path, "ab", buffering=0)  # noqa: SIM115
                self._events = EventFile(os.path.join(workdir, "tensorboard"), first_step)
        self._workdir = workdir

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
        self._console.print(printable(text), markup=False)

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and one point a number in TensorBoard.

        Args:
            kind: `train`, `val`, `best`, `bad_step` or `diverged`.
            step: optimizer steps done.
            values: numbers (one that is not finite becomes null), texts, lists of texts.
        """
        if not (self._file and self._events):
            return
        values = {name: _finite(value) for name, value in values.items()}
        line = json.dumps({"kind": kind, "step": step, **values}) + "\n"
        numbers = {
            f"{kind}/{name}": float(value)
            for name, value in values.items()
            if isinstance(value, (int, float))
        }
        with _told_in_one_line(self._workdir):
            if self._file.write(line.encode()) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._events.add(step, numbers)

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


@contextmanager
def _told_in_one_line(workdir: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the log in {workdir}: {reason(error)}: make room or choose another"
            " --config.workdir, and run the same command again"
        ) from error


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
    def batch_seconds(self) -> float | None:
        """None if no step has been timed, as behind the first one, which compiles."""
        return (time.perf_counter() - self._start) / self._steps if self._steps else None

    @property
    def reader_seconds(self) -> float | None:
        return self._reading / self._steps if self._steps else None


def duration(seconds: float) -> str:
    """`h:mm:ss`."""
    return str(timedelta(seconds=round(seconds)))
