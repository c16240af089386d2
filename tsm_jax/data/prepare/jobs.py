"""Applies a function to many files in separate processes, so that no file can stop the run.

A decoder that hangs is killed after a time limit, and one that crashes is replaced; both become a
`JobFailure` of that file. Results come in the order of the items, whichever finishes first.
"""

# `pebble` is not used: its workers answer through one pipe, so a worker that is killed (for its
# memory) while it sends a record stops all others.

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Literal, TypeVar

from tsm_jax.errors import StopJobsError, UserError
from tsm_jax.host import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")

# Items per process that may be started before the earliest unfinished one is done: a slow file
# delays the results of others, which must not pile up without limit.
_AHEAD = 8

# Seconds that an orphaned process has to clean up, once it sees its pipe closed.
_LAST_SECONDS = 5


@dataclass(frozen=True)
class JobFailure:
    """Why a file has no result.

    Attributes:
        reason: One line.
        kind: `refused` by the function, `late` (took too long), or `crashed` (its process ended).
        exit_code: Exit code of a process that ended, negative for a signal.
    """

    reason: str
    kind: Literal["refused", "late", "crashed"] = "refused"
    exit_code: int | None = None


class ProcessLostError(RuntimeError):
    """A process was killed, or ended before it was ready, and no item is to blame."""


@dataclass(frozen=True)
class _Raised:
    """An exception that is not a failure of the item, as text: not all of them can be pickled."""

    kind: type[Exception]
    text: str


def run_jobs(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    processes: int = 0,
    seconds: float = math.inf,
    ray: str | None = None,
    path_of: Callable[[Item], str] = str,
) -> Generator[tuple[Item, Result | JobFailure], None, None]:
    """Calls `function` on every item in separate processes.

    Args:
        function: Must be importable, since it is sent to the processes. A `UserError` that it
            raises is a failure of the item.
        items: Must be picklable. They are taken from the iterable as needed.
        processes: Number of processes; 0 for one per core.
        seconds: Time limit per item, after which its process is killed.
        ray: Address of a Ray cluster to run on, see `cluster.run_on_ray`.
        path_of: Returns the file of an item; used on a cluster.

    Yields:
        (item, result or `JobFailure`) in the order of the items.

    Raises:
        UserError: `function` raised a `StopJobsError`.
        RuntimeError: `function` raised any other exception, which is a bug. The message is its
            traceback.
    """
    if ray is not None:
        from tsm_jax.data.prepare.cluster import run_on_ray

        yield from run_on_ray(
            function, items, ray, path_of=path_of, processes=processes, seconds=seconds
        )
        return
    size = processes or usable_cores()
    workers = Workers(function, seconds=seconds)
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


def _nothing() -> None:
    pass


class _End:
    """Marks the end of an iterator's results."""


class Workers(Generic[Item, Result]):
    """Processes, each used by one thread at a time; a new one starts if all others are busy.

    Args:
        function: See `run_jobs`. For `stream`, it may also return an iterator of results.
        seconds: Time to wait for an item's results before its process is killed.
        prepare: Called in each new process before its first item.
        orphaned: Called in a process whose parent is gone, before the process ends.
        name: Name of the processes.
    """

    def __init__(
        self,
        function: Callable[[Item], Any],
        *,
        seconds: float = math.inf,
        prepare: Callable[[], None] = _nothing,
        orphaned: Callable[[], None] = _nothing,
        name: str = "prepare",
    ):
        self._arguments = (function, prepare, orphaned)
        self._seconds, self._name = seconds, name
        # Forks of a process with threads deadlock, especially in decoders.
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[tuple[SpawnProcess, Connection]] = []
        self._all: set[SpawnProcess] = set()
        self._closed = False
        # Two threads that wait for processes could steal each other's exit codes.
        self._lock = threading.Lock()

    def call(self, item: Item) -> Result | JobFailure:
        """Returns the result for an item.

        Raises:
            UserError: `function` raised a `StopJobsError`, or `prepare` a `UserError`.
            RuntimeError: `function` or `prepare` raised another exception.
            ProcessLostError: A process ended before it was ready.
        """
        return next(self.stream(item))

    def stream(self, item: Item) -> Generator[Result | JobFailure, None, None]:
        """Yields the results for an item, of which there may be several; raises as `call` does.

        A failure is the last result. Closing the generator before its end kills the process.
        """
        process, connection = self._take()
        left = self._seconds
        try:
            connection.send(item)
            while True:
                start = time.monotonic()
                if not connection.poll(None if math.isinf(left) else max(left, 0)):
                    self._end(process)
                    yield JobFailure(f"timed out after {self._seconds:g} s", "late")
                    return
                left -= time.monotonic() - start
                result = connection.recv()
                if not isinstance(result, _Item):
                    break
                yield result.value
        except (EOFError, OSError):
            code = self._end(process)
            yield JobFailure(f"the decoder crashed (exit code {code})", "crashed", code)
            return
        except GeneratorExit:
            self._end(process)
            raise
        self._idle.append((process, connection))
        if isinstance(result, _Raised):
            raise result.kind(result.text)
        if not isinstance(result, _End):
            yield result

    def start(self) -> None:
        """Starts a process ahead of its first item; raises as `call` does."""
        self._idle.append(self._start())

    @property
    def pids(self) -> list[int]:
        """IDs of the running processes."""
        return [process.pid for process in list(self._all) if process.pid is not None]

    def close(self) -> None:
        with self._lock:  # so that no process being started is missed
            self._closed = True
        for process in list(self._all):
            self._end(process)

    def _take(self) -> tuple[SpawnProcess, Connection]:
        while self._idle:
            try:
                process, connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            with self._lock:
                alive = process.is_alive()
            if alive:
                return process, connection
            self._end(process)
        return self._start()

    def _start(self) -> tuple[SpawnProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(*self._arguments, theirs), daemon=True, name=self._name
        )
        with self._lock:
            if self._closed:
                raise ProcessLostError("the worker processes have been closed")
            process.start()
            self._all.add(process)
        theirs.close()
        try:
            refused = ours.recv()  # preparation is done, so the clock may start
        except (EOFError, OSError):
            raise ProcessLostError(
                f"a process ended before it was ready (exit code {self._end(process)})"
            ) from None
        if isinstance(refused, _Raised):
            self._end(process)
            raise refused.kind(refused.text)
        return process, ours

    def _end(self, process: SpawnProcess) -> int | None:
        with self._lock:
            self._all.discard(process)
            process.kill()
            process.join()
            return process.exitcode


@dataclass(frozen=True)
class _Item:
    """One of several results."""

    value: Any


def _serve(
    function: Callable[[Any], Any],
    prepare: Callable[[], None],
    orphaned: Callable[[], None],
    connection: Connection,
) -> None:
    """Runs in a worker process: receives items and sends results until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    watcher = threading.Thread(target=_die_with_parent, args=[orphaned], daemon=True)
    watcher.start()
    with suppress(EOFError, OSError):  # the parent is gone
        connection.send(_prepared(prepare))
        while True:
            result = _result(function, connection.recv())
            while isinstance(result, Iterator):
                value = _result(_next, result)
                if isinstance(value, _End | _Raised | JobFailure):
                    result = value
                else:
                    connection.send(_Item(value))
            connection.send(result)
    watcher.join(_LAST_SECONDS)  # it ends the process if the parent has died


def _prepared(prepare: Callable[[], None]) -> _Raised | None:
    try:
        prepare()
    except UserError as error:
        return _Raised(UserError, str(error))
    except Exception:
        return _Raised(RuntimeError, traceback.format_exc())


def _next(results: Iterator[Any]) -> Any:
    return next(results, _End())


def _result(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except StopJobsError as error:
        return _Raised(UserError, str(error))
    except UserError as error:
        return JobFailure(" ".join(str(error).split()))
    except Exception:
        return _Raised(RuntimeError, traceback.format_exc())


def _die_with_parent(orphaned: Callable[[], None]) -> None:
    """Ends this process with its parent, so that no writers are left to race with a new run."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        try:
            orphaned()
        finally:
            os._exit(1)
