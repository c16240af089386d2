"""Runs a task on a node of a Ray cluster: its items, one after the other.

Each core of a node uses a process of its own (`jobs.Workers`), as on a single machine: a file that
hangs, crashes or takes too much memory affects only itself, not Ray's worker or the run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tsm_jax import host
from tsm_jax.data.prepare.jobs import Workers
from tsm_jax.errors import UnreadableClipError, UserError


class Order(NamedTuple):
    """What all tasks of a run have in common.

    Attributes:
        seconds: Time limit per item, see `jobs.run_jobs`.
        folder: Folder that relative paths are relative to.
        versions: Required versions, see `versions`.
    """

    function: Callable[[Any], Any]
    prepare: Callable[[], object]
    seconds: float
    folder: str
    versions: dict[str, str | None]


class Done(NamedTuple):
    """The outcome of an item on a node.

    Attributes:
        node: Address of the node.
        seconds: Time that the item took.
        result: The pickled result.
        stopped: Message of a user error, which ends the run.
        defect: Traceback of a bug, which also ends the run.
        size: Size of the item's file as the node sees it, see `size_of`.
    """

    node: str
    seconds: float = 0.0
    result: bytes = b""
    stopped: str = ""
    defect: str = ""
    size: int | None = None


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Returns the versions of packages (None if missing), and a digest of the code of `tsm_jax`."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    root = Path(__file__).parents[2]
    code = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        code.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    found["tsm_jax"] = f"code {code.hexdigest()[:12]}"
    return found


def size_of(path: str) -> int | None:
    """Returns the bytes of a file, -1 for a folder, or None for an address or a missing file."""
    if "://" in path:
        return None
    try:
        return -1 if os.path.isdir(path) else os.stat(path).st_size
    except (OSError, ValueError):
        return None


_current: tuple[bytes, Workers[Any, Any]] | None = None  # of this Ray worker


def work(order: bytes, items: Sequence[tuple[Any, str]]) -> list[Done]:
    """Runs a task: returns one answer per (item, path), or fewer if an item ends the run.

    Args:
        order: A pickled `Order`.
    """
    import ray  # pyright: ignore[reportMissingImports]

    node = ray.util.get_node_ip_address()
    answers: list[Done] = []
    for item, path in items:
        begin = time.monotonic()
        try:
            result = pickle.dumps(_workers(order).call(item))
        except UserError as error:
            return [*answers, Done(node, stopped=str(error))]
        except RuntimeError as error:
            return [*answers, Done(node, defect=str(error))]
        answers.append(Done(node, time.monotonic() - begin, result, size=size_of(path)))
    return answers


def _workers(pickled: bytes) -> Workers[Any, Any]:
    """Returns the process of this Ray worker, which is kept from one task to the next."""
    global _current
    if _current is None or _current[0] != pickled:
        if _current is not None:
            _current[1].close()
        order: Order = pickle.loads(pickled)
        found = versions(name for name in order.versions if name != "tsm_jax")
        for name, wanted in order.versions.items():
            if found[name] != wanted:
                raise UserError(
                    f"{name}: {found[name] or 'not installed'} here, but"
                    f" {wanted or 'not installed'} on the machine that runs the command: install"
                    " the same everywhere"
                )
        with suppress(OSError):  # if it is missing, so are files with relative paths
            os.chdir(order.folder)
        # Otherwise, the new process would import Ray's program again as its main module.
        vars(sys.modules["__main__"]).pop("__file__", None)
        memory = _memory_of_a_core()
        workers = Workers(
            _Bounded(order.function, memory),
            seconds=order.seconds,
            prepare=_Start(order.prepare, memory),
        )
        _current = pickled, workers
    return _current[1]


def _memory_of_a_core() -> int | None:
    """Returns a core's share of the node's memory in bytes, or None for no limit.

    With this limit, no file can take the node down.
    """
    import ray  # pyright: ignore[reportMissingImports]

    own = ray.get_runtime_context().get_node_id()
    resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == own)
    if not resources.get("memory") or resources.get("GPU"):  # GPU drivers map any amount
        return None
    return int(resources["memory"] / max(1, resources.get("CPU", 1)))


@dataclass(frozen=True)
class _Start:
    """Prepares a new process: one core, a memory limit, then what the run needs."""

    prepare: Callable[[], object]
    memory: int | None

    def __call__(self) -> None:
        host.use_cores(1)
        # Several processes may share a GPU; jax would reserve three quarters of it for each.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        if self.memory is not None:
            import resource

            _, hardest = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (self.memory, hardest))
        self.prepare()


@dataclass(frozen=True)
class _Bounded:
    """Wraps the function so that a lack of memory is a failure of the item alone."""

    function: Callable[[Any], Any]
    memory: int | None

    def __call__(self, item: Any) -> Any:
        try:
            return self.function(item)
        except Exception as error:
            # OpenCV raises an error of its own.
            if not isinstance(error, MemoryError) and "Insufficient memory" not in str(error):
                raise
        most = (
            f"{self.memory >> 20} MB, its core's share of the node" if self.memory else "there is"
        )
        raise UnreadableClipError(
            f"it needs more memory than {most}: give the nodes fewer cores (ray start --num-cpus)"
        )
