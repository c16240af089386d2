"""Many files through one function, in processes of their own, which no file can stop.

A decoder that hangs is killed after a time limit and one that crashes is replaced; both become a
`JobFailure` of that file. Results come in the order of the items, whoever finishes first.
"""

# `pebble` is not used: its workers answer through one pipe, so that one that is killed for its
# memory while it sends a record stops all others.

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
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
    """A mistake that is not that of an item, such as a full disk: it ends all of the work."""


@dataclass(frozen=True)
class _Raised:
    """An exception that is not that of the item, as text: not every exception can be pickled."""

    kind: type[Exception]
    text: str


def run_jobs(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    processes: int = 0,
    seconds: float = math.inf,
) -> Generator[tuple[Item, Result | JobFailure], None, None]:
    """Calls `function` on every item.

    Args:
        function: importable, since it is sent to the processes. Its `UserError` is a failure of
            the item.
        items: picklable. They are taken as they are needed.
        processes: how many, 0 for one per core.
        seconds: after which the process of an item is killed.

    Yields:
        (item, result or `JobFailure`) in the order of the items.

    Raises:
        UserError: `function` raised a `StopJobsError`.
        RuntimeError: `function` raised something else: a defect, with the traceback from there.
    """
    size = processes or usable_cores()
    workers = _Workers(function, seconds)
    begun = deque()
    with ThreadPoolExecutor(size) as threads:
        try:
            for item in items:
                begun.append((item, threads.submit(workers.call, item)))
                if len(begun) == size * _AHEAD:
                    first, result = begun.popleft()
                    yield first, result.result()
            while begun:
                first, result = begun.popleft()
                yield first, result.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            workers.close()


class _Workers(Generic[Item, Result]):
    """Processes, each used by one thread at a time."""

    def __init__(self, function: Callable[[Item], Result], seconds: float):
        self._function = function
        self._seconds = None if math.isinf(seconds) else seconds
        # Forked copies of a process with threads deadlock, in decoders above all.
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[tuple[SpawnProcess, Connection]] = []
        self._all: set[SpawnProcess] = set()
        self._closed = False
        # Two threads that wait for processes could take the exit codes from each other.
        self._lock = threading.Lock()

    def call(self, item: Item) -> Result | JobFailure:
        try:
            process, connection = self._idle.pop()
        except IndexError:
            process, connection = self._start()
        try:
            connection.send(item)
            if not connection.poll(self._seconds):
                self._end(process)
                return JobFailure(f"not done after {self._seconds:g} s")
            result = connection.recv()
        except (EOFError, OSError):
            return JobFailure(f"the decoder crashed (exit code {self._end(process)})")
        self._idle.append((process, connection))
        if isinstance(result, _Raised):
            raise result.kind(result.text)
        return result

    def close(self) -> None:
        with self._lock:  # none that is being started is forgotten
            self._closed = True
        for process in list(self._all):
            self._end(process)

    def _start(self) -> tuple[SpawnProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(self._function, theirs), daemon=True, name="prepare"
        )
        with self._lock:
            if self._closed:
                raise RuntimeError("closed")
            process.start()
            self._all.add(process)
        theirs.close()
        try:
            ours.recv()  # imports are done, the clock may start
        except (EOFError, OSError):
            raise RuntimeError(f"a process ended with {self._end(process)}") from None
        return process, ours

    def _end(self, process: SpawnProcess) -> int | None:
        with self._lock:
            self._all.discard(process)
            process.kill()
            process.join()
            return process.exitcode


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
        return _Raised(UserError, str(error))
    except UserError as error:
        return JobFailure(" ".join(str(error).split()))
    except Exception:
        return _Raised(RuntimeError, traceback.format_exc())


def _die_with_parent() -> None:
    """A killed parent must not leave writers that race with its successor."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
