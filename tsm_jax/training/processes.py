"""Runs with several processes: they find each other, agree, and end together.

A single process needs no setup. Several processes are detected from the environment: SLURM, Open
MPI or a TPU slice, which jax knows, or the three variables that `launch/` sets.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from tsm_jax.errors import UserError
from tsm_jax.training.mesh import put_batch, replicated
from tsm_jax.training.preemption import EXIT_CODE, Preemption

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"

_DAY = 24 * 60 * 60  # seconds
# Time after which a process that does not answer is given up; a killed one is noticed at once.
_SILENT_SECONDS = 20

_T = TypeVar("_T")


@contextmanager
def joined(timeout_seconds: float = 300.0) -> Iterator[None]:
    """Joins the other processes of this run, if there are any; an error in one ends them all.

    Enter it before anything asks jax for its devices. If the others do not appear within
    `timeout_seconds`, the process prints one line and exits with code 1.

    Raises:
        UserError: the environment is contradictory.
    """
    arguments = distributed_arguments()
    if arguments is None or not _connect(arguments, timeout_seconds):
        yield
        return
    from tsm_jax.training import lost_process  # late, as in `_connect`: a single process needs none

    stopped = threading.Event()
    watch = (_store(), stopped)
    threading.Thread(target=lost_process.end_with_others, args=watch, daemon=True).start()
    try:
        yield
    except BaseException as error:
        reported = _without_gloo(error)
        # Preempted processes stop together and then end as after the last step.
        if not isinstance(error, SystemExit) or error.code not in (None, 0, EXIT_CODE):
            stopped.set()
            is_known = isinstance(reported, UserError)
            text = " ".join(str(reported).split()) if is_known else repr(error)
            message = f"process {jax.process_index()} of {jax.process_count()}: {text}"
            lost_process.announce(_store(), message)
            atexit.register(lost_process.leave, 130 if isinstance(error, KeyboardInterrupt) else 1)
        if reported is not error:
            raise reported from error
        raise
    finally:
        stopped.set()


def _without_gloo(error: BaseException) -> BaseException:
    """Returns the error, or what it means if it comes from the library that connects processes."""
    if not isinstance(error, Exception) or "Gloo" not in str(error):
        return error
    return UserError(
        "the connection to another process broke: see the output of that process or its launcher"
        f" for the reason ({str(error).splitlines()[0]})"
    )


def wait_for_all(what: str) -> None:
    """Waits until every process has called this, however long that takes.

    On CPUs, the first collective operation would time out after half a minute. `what` names the
    barrier; each name is used once in a run.
    """
    if jax.process_count() > 1:
        _store().wait_at_barrier(f"tsm_jax/{what}", _DAY * 1000)


def compiled_together(step: Callable[..., _T], what: str) -> Callable[..., _T]:
    """Returns the jitted `step`; its first call waits until all processes have compiled it.

    One process may find it in its compilation cache while another needs a minute.
    """
    if jax.process_count() == 1:
        return step
    compiled: Any = None

    def call(*arguments: Any) -> _T:
        nonlocal compiled
        if compiled is None:
            jitted: Any = step
            compiled = jitted.lower(*arguments).compile()
            wait_for_all(f"compiled the {what}")
        return compiled(*arguments)

    return call


def from_first(value: int) -> int:
    """Returns the first process's value in every process; all of them must call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def stop_vote(preemption: Preemption, mesh: Mesh) -> Callable[[], bool]:
    """Returns a function that tells all processes to stop once a signal has reached any of them.

    Every process must call it equally often. With several processes, each call returns the result
    of the previous one, so that nobody waits for a vote.
    """
    if jax.process_count() == 1:
        return lambda: preemption.noted
    any_flag = jax.jit(lambda flags: flags.any(), out_shardings=replicated(mesh))
    pending: jax.Array | None = None

    def stop() -> bool:
        nonlocal pending
        flags = np.full(len(mesh.local_devices), preemption.noted)
        before, pending = pending, any_flag(put_batch({"flags": flags}, mesh)["flags"])
        return before is not None and bool(before)

    return stop


def check_shared(directory: str) -> None:
    """Checks that all processes see the same `directory`.

    All of them write parts of a checkpoint. With a directory on each host's own disk, no checkpoint
    would ever be complete.

    Raises:
        UserError: they do not; raised in every process.
    """
    if jax.process_count() == 1:
        return
    token = from_first(int.from_bytes(os.urandom(3), "big"))
    path = os.path.join(directory, f".seen-by-all-{token}")
    if jax.process_index() == 0:
        os.makedirs(directory, exist_ok=True)
        with open(path, "w", encoding="utf-8"):
            pass
    wait_for_all("looked for a shared directory")
    seen = multihost_utils.process_allgather(np.int32(_appears(path)))
    if jax.process_index() == 0:
        os.remove(path)
    if not seen.all():
        raise UserError(
            f"{os.path.abspath(directory)} is not the same directory for all"
            f" {jax.process_count()} processes: set --config.workdir to a directory on a file"
            " system that all hosts share"
        )


def _appears(path: str, seconds: float = 5.0) -> bool:
    """Returns whether a file appears within `seconds`; network file systems may show it late."""
    deadline = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def distributed_arguments() -> dict[str, Any] | None:
    """Returns the arguments of `jax.distributed.initialize`, None for a single process."""
    given = {name: os.environ[name] for name in (ADDRESS, COUNT, INDEX) if os.environ.get(name)}
    if given:
        return _from_variables(given)
    if int(os.environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" in os.environ:
        return {"cluster_detection_method": "slurm"}
    if int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return {"cluster_detection_method": "ompi"}
    # On a TPU slice, jax finds the other processes through the machine's metadata.
    return {} if importlib.util.find_spec("libtpu") else None


def _from_variables(given: dict[str, str]) -> dict[str, Any] | None:
    missing = [name for name in (ADDRESS, COUNT, INDEX) if name not in given]
    if missing:
        raise UserError(
            f"the environment has {', '.join(given)} but not {', '.join(missing)}: set all three"
            " for several processes, or none for a single process (see launch/README.md)"
        )
    if not (given[COUNT].isdecimal() and given[INDEX].isdecimal()):
        raise UserError(
            f"{COUNT}={given[COUNT]} and {INDEX}={given[INDEX]} must be non-negative integers"
        )
    count, index = int(given[COUNT]), int(given[INDEX])
    if index >= count:
        raise UserError(f"{INDEX}={index} must be less than {COUNT}={count}")
    host, _, port = given[ADDRESS].rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{ADDRESS}={given[ADDRESS]} must be HOST:PORT of process 0")
    if count == 1:
        return None
    return {
        "coordinator_address": given[ADDRESS],
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


def _connect(arguments: dict[str, Any], timeout_seconds: float) -> bool:
    """Joins the other processes; returns False if the machine turns out to be on its own."""
    from tsm_jax.training.lost_process import print_and_exit, shorten_aborts

    def give_up() -> None:
        who, address = "this process", arguments.get("coordinator_address", "process 0")
        if "process_id" in arguments:
            who = f"process {arguments['process_id']} of {arguments['num_processes']}"
        print_and_exit(
            f"{who} did not find all others at {address} within {timeout_seconds:.0f} s: check"
            " that all are running and can reach that address"
        )

    shorten_aborts()
    # jaxlib would abort with a stack trace at its own timeout.
    alarm = threading.Timer(timeout_seconds, give_up)
    alarm.daemon = True
    alarm.start()
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        # Its SIGTERM handler would replace the one that saves and ends the run.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=int(timeout_seconds) + 60,
            heartbeat_timeout_seconds=_SILENT_SECONDS,
        )
    except ValueError:
        if arguments:
            raise
        return False  # the TPU library is installed, but the machine is not part of a slice
    except RuntimeError as error:
        raise UserError(f"cannot join the other processes: {error}") from error
    finally:
        alarm.cancel()
    return _store() is not None


def _store() -> Any:
    """Returns the client of the shared store and barriers, for which jax has no public name."""
    from jax._src.distributed import global_state

    return global_state.client
