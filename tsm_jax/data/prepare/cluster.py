"""Applies a function to many files on the nodes of a Ray cluster: `run_jobs` on several machines.

`cluster_node.py` runs on the nodes and contains failures of files there. Ray therefore never loses
a task because of a file, and lost tasks are run again elsewhere.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import pickle
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from tsm_jax import host
from tsm_jax.data.prepare.cluster_node import Done, Order, size_of, versions, work
from tsm_jax.data.prepare.jobs import JobFailure
from tsm_jax.errors import UserError
from tsm_jax.files import reason
from tsm_jax.terminal import printable

Item = TypeVar("Item")
Result = TypeVar("Result")

LOCAL = "local"

# Besides our own code, these decide the pixels of decoded and encoded frames.
PACKAGES = ("av", "numpy", "opencv-python-headless", "pillow", "protobuf")

# Tasks submitted to Ray at a time, per core: one that runs and one that is on its way. A cluster
# that grows with its work needs some waiting tasks to start from.
_TASKS_PER_CORE, _FEWEST_TASKS = 2, 16

# Limits for items whose results wait for an earlier one: their number, and bytes of results.
_MOST_AHEAD, _MOST_BYTES = 4096, 512 << 20

# A task costs 1.5 ms of CPU time, a tenth of what a short clip takes. It therefore gets as many
# items as keep a core busy for this many seconds: little enough to repeat if a node is lost.
_TASK_SECONDS, _MOST_ITEMS = 0.25, 32

# After so many lost workers or killed processes, an item is not given to another worker. A process
# that was killed, rather than crashed, may have been on a node that was shutting down.
_MOST_LOSSES, _MOST_KILLS = 10, 3
_KILLED = (-9, -15)

_CONNECT_SECONDS = 5.0
# Longest path of the temporary folder: Ray's sockets are below it, and theirs may have 107 bytes.
_LONGEST_FOLDER = 24
# RFC 9113, 3.4: Ray uses gRPC over HTTP/2, where both sides begin with a SETTINGS frame.
_HTTP2_SETTINGS = b"\x04"
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _HTTP2_SETTINGS + bytes(5)
_COUNT_SECONDS = 2.0  # between two checks of the cluster's size
_PATIENCE = 600.0  # seconds to wait while no node has a core


@dataclass
class _Slot:
    """An item in progress."""

    item: Any
    path: str
    losses: int = 0
    kills: int = 0
    done: Done | None = None


def run_on_ray(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    address: str,
    *,
    path_of: Callable[[Item], str],
    processes: int = 0,
    seconds: float = math.inf,
    prepare: Callable[[], object] = tuple,  # does nothing
    packages: Iterable[str] = (),
    on_gpus: bool = False,
) -> Generator[tuple[Item, Result | JobFailure], None, None]:
    """Like `run_jobs`, but on the cores of a cluster: the same results in the same order.

    Args:
        function: Must be importable on the nodes.
        address: `local` for a cluster of only this machine, which ends with the run; `auto` for the
            cluster that this machine belongs to; or a cluster's `HOST:PORT`.
        path_of: Returns the file of an item, which must be the same on all nodes and this machine.
        processes: Cores of a local cluster; 0 for all.
        prepare: Called in each new process before its first item.
        packages: Packages, in addition to `PACKAGES`, whose versions must be the same everywhere.
        on_gpus: If the cluster has GPUs, use only the nodes that have some.

    Raises:
        UserError: As for `run_jobs`; or the cluster cannot be reached, its nodes differ from this
            machine in something that affects the results, or an item took down worker after worker.
        RuntimeError: As for `run_jobs`.
    """
    same_everywhere = versions((*PACKAGES, *packages))
    order = pickle.dumps(Order(function, prepare, seconds, os.getcwd(), same_everywhere))
    with _connected(address, processes) as ray:
        resource = "GPU" if on_gpus and ray.cluster_resources().get("GPU") else "CPU"
        options: dict[str, Any] = {"num_cpus": 1, "max_retries": 0}
        if resource == "GPU":  # a share of a GPU for each core that decodes for it
            total = ray.cluster_resources()
            options["num_gpus"] = min(1.0, round(total["GPU"] / total.get("CPU", 1), 4))
        task = ray.remote(**options)(work)
        slots = (_Slot(item, path_of(item)) for item in items)

        def submit(some: list[_Slot]) -> Any:
            return task.remote(order, [(slot.item, slot.path) for slot in some])

        for slot in _in_order(ray, slots, submit):
            yield slot.item, _result(slot)


def _in_order(
    ray: Any, slots: Iterator[_Slot], submit: Callable[[list[_Slot]], Any]
) -> Generator[_Slot, None, None]:
    """Yields the finished slots in order. The number of tasks and results held is bounded."""
    begun: deque[_Slot] = deque()
    running: dict[Any, list[_Slot]] = {}
    held, all_begun, items_per_task = 0, False, 1
    cores = _Cores(ray)
    try:
        while True:
            most = max(_FEWEST_TASKS, _TASKS_PER_CORE * cores.count())
            while not all_begun and len(running) < most and len(begun) < _MOST_AHEAD:
                if held > _MOST_BYTES and running:
                    break
                some = list(islice(slots, min(items_per_task, _MOST_AHEAD - len(begun))))
                if not some:
                    all_begun = True
                    break
                begun += some
                running[submit(some)] = some
            while begun and (done := begun[0].done) is not None:
                yield begun.popleft()
                held -= len(done.result)
            if not begun and all_begun:
                return
            ready = ray.wait(list(running), timeout=_COUNT_SECONDS)[0] if running else []
            for reference in ready:
                some = running.pop(reference)
                _take(ray, reference, some)
                # Each alone, so that an item that takes its worker down affects no other.
                running |= {submit([slot]): [slot] for slot in some if slot.done is None}
                done = [slot.done for slot in some if slot.done is not None]
                held += sum(len(one.result) for one in done)
                items_per_task = _items_per_task(done, items_per_task)
    finally:
        for reference in running:
            with suppress(Exception):  # the connection itself may be lost
                ray.cancel(reference)


def _items_per_task(done: Sequence[Done], now: int) -> int:
    """Returns the number of items for the next tasks, from those of a finished task.

    The first item of a process takes long, because the process has to start.
    """
    if not done:
        return now
    seconds = sum(one.seconds for one in done) / len(done)
    size = sum(len(one.result) for one in done) / len(done)
    # The results of the tasks of 16 cores must fit while an earlier one is awaited.
    fit = min(_TASK_SECONDS / max(seconds, 1e-6), _MOST_BYTES / 32 / max(size, 1))
    return max(1, min(int(fit), 2 * now, _MOST_ITEMS))


def _take(ray: Any, reference: Any, slots: list[_Slot]) -> None:
    """Stores the node's answers; a slot without an answer has to be run again."""
    errors = ray.exceptions
    try:
        answers: list[Done] = ray.get(reference)
    except errors.RayTaskError as error:
        if isinstance(error.cause, ImportError) or "failed to import" in str(error):
            why = str(error.cause or error).strip().splitlines()[-1]
            raise UserError(
                f"a node of the cluster lacks packages of this machine ({why}): install the same"
                " packages there"
            ) from None
        raise
    except errors.RayError as error:
        for slot in slots:
            slot.losses += 1
            if slot.losses >= _MOST_LOSSES:
                raise UserError(
                    f"{printable(slot.path)}: {slot.losses} workers were lost while processing it"
                    f" (last error: {reason(error)[:300]}); give the nodes more memory or fewer"
                    " cores (ray start --num-cpus), or remove it from the list, and run the same"
                    " command again to continue"
                ) from error
        return
    for slot, done in zip(slots, answers, strict=False):  # none after an answer that ends the run
        if done.result:
            _check_same_file(slot.path, done)
            result = pickle.loads(done.result)
            if isinstance(result, JobFailure) and result.exit_code in _KILLED:
                slot.kills += 1
                if slot.kills < _MOST_KILLS:
                    continue
        slot.done = done


def _check_same_file(path: str, done: Done) -> None:
    """Raises a UserError if the node sees a different file.

    Otherwise, a node without the videos' disk would make the data set too small.
    """
    here = size_of(path)
    if here != done.size:

        def seen(size: int | None) -> str:
            return "nothing" if size is None else "a folder" if size < 0 else f"{size} bytes"

        raise UserError(
            f"node {done.node} sees {seen(done.size)} at {printable(path)}, but this"
            f" machine sees {seen(here)}: all machines need the same files under the same paths, on"
            " a shared disk; or use gs:// or s3:// addresses in the list"
        )


def _result(slot: _Slot) -> Any:
    done = slot.done
    assert done is not None
    if done.stopped:
        raise UserError(f"node {done.node}: {done.stopped}")
    if done.defect:
        raise RuntimeError(f"on node {done.node}: {done.defect}")
    return pickle.loads(done.result)


class _Cores:
    """Counts the cores of the cluster, whose nodes come and go."""

    def __init__(self, ray: Any):
        self._ray = ray
        self._looked = -math.inf
        self._count = 0
        self._last_seen = time.monotonic()
        self._has_warned = False

    def count(self) -> int:
        now = time.monotonic()
        if now - self._looked >= _COUNT_SECONDS:
            self._looked = now
            self._count = int(self._ray.cluster_resources().get("CPU", 0))
            if self._count:
                self._last_seen, self._has_warned = now, False
            elif now - self._last_seen > _PATIENCE:
                raise UserError(
                    f"the cluster has had no node with a core for {_PATIENCE:.0f} s: add one and"
                    " run the same command again to continue"
                )
            elif not self._has_warned and now - self._last_seen > 2 * _COUNT_SECONDS:
                print("waiting for a node: the cluster has none with a core", file=sys.stderr)
                self._has_warned = True
        return self._count


@contextmanager
def _connected(address: str, processes: int) -> Iterator[Any]:
    """Yields the module `ray`, connected; reuses a connection that the process already has."""
    # Ray sends usage statistics unless this is set before it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # avoids a warning
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            f"--ray: Ray cannot be imported ({reason(error)}): pip install 'tsm-jax[ray]'"
        ) from None
    if ray.is_initialized():
        yield ray
        return
    is_local = address == LOCAL
    if processes and not is_local:
        raise UserError(
            f"--processes cannot be used with --ray {address}: the nodes decide the number of cores"
        )
    if not is_local:
        _check_address(address)
    folder = tempfile.gettempdir()
    if len(folder) > _LONGEST_FOLDER and os.path.isdir("/tmp"):
        folder = "/tmp"
    with tempfile.TemporaryDirectory("", "tsm-", folder, ignore_cleanup_errors=True) as folder:
        own: dict[str, Any] = {
            "num_cpus": processes or host.usable_cores(),
            "include_dashboard": False,
            "_temp_dir": folder,
            # As without Ray, the kernel kills what takes too much memory: the file's own process.
            "_system_config": {"memory_monitor_refresh_ms": 0},
        }
        try:
            with _silenced():
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **(own if is_local else {}),
                )
        except Exception as error:  # whatever it raises, there is no cluster
            raise UserError(
                f"--ray {address}: there is no usable cluster ({reason(error)[:300]})"
            ) from error
        try:
            # Ray prints messages about its nodes to standard output, among our results, and has no
            # option to stop it.
            ray._private.worker.print_to_stdstream = lambda *_, **__: None
            yield ray
        finally:
            with _silenced():
                ray.shutdown()


def _check_address(address: str) -> None:
    """Raises a UserError for an address without a cluster; Ray would take minutes to do so."""
    if "://" in address:
        raise UserError(
            f"--ray {address}: run the command on a node of the cluster, with HOST:PORT or auto;"
            " from elsewhere, use ray job submit -- COMMAND"
        )
    if address == "auto":
        return
    host_name, _, port = address.rpartition(":")
    if not host_name or not port.isdecimal():
        raise UserError(
            f"--ray {address}: expected local, auto or HOST:PORT, such as 10.0.0.1:6379"
        )
    why = "something other than Ray answers"
    try:
        place = (host_name.strip("[]"), int(port))
        with socket.create_connection(place, _CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return
            connection.sendall(_HTTP2_GREETING)
            if connection.recv(9)[3:4] == _HTTP2_SETTINGS:
                return
    except (OSError, OverflowError) as error:
        why = f"nothing answers ({reason(error)})"
    raise UserError(
        f"--ray {address}: there is no cluster, {why}: start one with ray start --head, which"
        " prints its address"
    )


@contextmanager
def _silenced() -> Iterator[None]:
    """Suppresses what Ray's C++ code writes to standard error, bypassing Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
