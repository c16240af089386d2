"""Many files through one function, in processes of their own: nothing that a file does can stop us.

A decoder that hangs is killed after a time limit and one that crashes is replaced; both become a
`JobFailure` of that file. Results come in the order of the items, whoever finishes first.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Generic, TypeVar

from tsm_jax.errors import UserError
from tsm_jax.host import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items per process that may be finished before an earlier one: a slow file delays the others'
# results, but must not pile them up without end.
_AHEAD = 8


@dataclass(frozen=True)
class JobFailure:
    """Why a file gave no result, in one line."""

    reason: str


class StopJobsError(UserError):
    """A mistake that is no item's own, such as a full disk: it ends all of the work."""


class _Stop:
    """The text of a `StopJobsError`."""

    def __init__(self, text: str):
        self.text = text


class _Defect:
    """An exception that is no fault of the file, as text: not every exception can be pickled."""

    def __init__(self, text: str):
        self.text = text


def run_jobs(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    processes: int = 0,
    seconds: float = math.inf,
) -> Generator[tuple[Item, Result | JobFailure], None, None]:
    """Calls `function` on every item.

    Args:
        function: importable, since it is sent to the processes. A `UserError` of its is a failure
            of the item.
        items: picklable. They are taken as they are needed.
        processes: how many, 0 for one per core.
        seconds: after which the process of an item is killed.

    Yields:
        (item, result or `JobFailure`) in the order of the items.

    Raises:
        UserError: `function` raised a `StopJobsError`.
        RuntimeError: `function` raised something else: a defect, with the traceback from there.
    """
    pool = _Pool(function, processes or usable_cores(), seconds)
    try:
        yield from pool.run(items)
    finally:
        pool.close()


@dataclass
class _Worker:
    """A process and the number of the item it has."""

    process: SpawnProcess
    connection: Connection
    number: int | None = None
    started: bool = False
    deadline: float = field(default=math.inf)


class _Pool(Generic[Item, Result]):
    def __init__(self, function: Callable[[Item], Result], processes: int, seconds: float):
        self._function = function
        self._seconds = seconds
        # Forked copies of a process with threads deadlock, in decoders above all.
        self._context: SpawnContext = multiprocessing.get_context("spawn")
        self._size = processes
        self._workers: list[_Worker] = []
        self._results: dict[int, Any] = {}

    def run(self, items: Iterable[Item]) -> Generator[tuple[Item, Result | JobFailure], None, None]:
        numbered = enumerate(items)
        waiting: dict[int, Item] = {}
        exhausted = False
        while not exhausted or waiting:
            while not exhausted and len(waiting) < self._size * _AHEAD and self._has_room():
                number, item = next(numbered, (None, None))
                if number is None:
                    exhausted = True
                else:
                    waiting[number] = item  # type: ignore[assignment]
                    self._give(number, item)
            while waiting and (first := next(iter(waiting))) in self._results:
                yield waiting.pop(first), self._results.pop(first)
            if waiting and next(iter(waiting)) not in self._results:
                self._collect()

    def _has_room(self) -> bool:
        return len(self._workers) < self._size or any(w.number is None for w in self._workers)

    def _give(self, number: int, item: Any) -> None:
        worker = next((w for w in self._workers if w.number is None), None) or self._start()
        worker.number = number
        worker.deadline = time.monotonic() + self._seconds if worker.started else math.inf
        worker.connection.send(item)

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(self._function, theirs), daemon=True, name="prepare"
        )
        process.start()
        theirs.close()
        worker = _Worker(process, ours)
        self._workers.append(worker)
        return worker

    def _collect(self) -> None:
        """Waits until a worker has something to say, or has had its time."""
        deadline = min(worker.deadline for worker in self._workers)
        timeout = None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())
        ready = wait([worker.connection for worker in self._workers], timeout)
        for worker in list(self._workers):
            if worker.connection in ready:
                self._receive(worker)
            elif worker.deadline <= time.monotonic():
                self._replace(worker, f"not done after {self._seconds:g} s")

    def _receive(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            if not worker.started:
                raise RuntimeError(f"a process ended with {worker.process.exitcode}") from None
            self._replace(worker, f"the decoder crashed (exit code {worker.process.exitcode})")
            return
        if isinstance(message, _Stop):
            raise UserError(message.text)
        if isinstance(message, _Defect):
            raise RuntimeError(message.text)
        if not worker.started:  # its first message: imports are done, the clock starts
            worker.started = True
            worker.deadline = time.monotonic() + self._seconds
            return
        assert worker.number is not None
        self._results[worker.number] = message
        worker.number, worker.deadline = None, math.inf

    def _replace(self, worker: _Worker, reason: str) -> None:
        if worker.number is not None:
            self._results[worker.number] = JobFailure(reason)
        self._workers.remove(worker)
        _kill(worker)

    def close(self) -> None:
        for worker in self._workers:
            _kill(worker)


def _kill(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.connection.close()


def _serve(function: Callable[[Any], Any], connection: Connection) -> None:
    """What a worker does: items in, results out, until there is nobody to work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):  # the parent is gone
        connection.send(None)
        while True:
            connection.send(_result(function, connection.recv()))


def _result(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except StopJobsError as error:
        return _Stop(str(error))
    except UserError as error:
        return JobFailure(" ".join(str(error).split()))
    except Exception:
        return _Defect(traceback.format_exc())


def _die_with_parent() -> None:
    """A killed parent must not leave writers behind that race with its successor."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
