"""What this process uses of the machine: cores, freed memory, a cache of compiled steps.

Without jax: the cache has to be chosen before jax is imported.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
from contextlib import suppress
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
_MMAP_THRESHOLD = 32 * 2**20  # bytes; the most that glibc allows
_TRIM_THRESHOLD = 512 * 2**20  # bytes

DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
LIMIT_BYTES = 4 * 2**30


_CGROUP = "/sys/fs/cgroup"  # in a container its own

_given_cores = 0


def use_cores(count: int) -> None:
    """Makes this process use so many cores, where others were given to its neighbours.

    To be called before an engine is opened.
    """
    global _given_cores
    _given_cores = count
    os.environ["NPROC"] = str(count)  # what XLA's thread pools on a CPU go by


def given_cores() -> int:
    """What `use_cores` was called with, 0 if it was not."""
    return _given_cores


def usable_cores() -> int:
    """Processor cores that this process may use, at least 1.

    Those that it was given by `use_cores`; else its affinity and the quota of its container count
    (`docker run --cpus`, Kubernetes' limits; a part of a core as a whole one), not what the machine
    has.
    """
    if _given_cores:
        return _given_cores
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _container_quota())))


def sums_bytes_in_32_bits() -> bool:
    """Whether products of bytes are summed in 32 bits here: on x86 that takes VNNI.

    False where nothing tells what an x86 processor can do.
    """
    return platform.machine().lower() not in ("x86_64", "amd64") or "_vnni" in _features()


def _container_quota() -> float:
    """Cores' worth of time that the container may use; infinite without a limit.

    From `cpu.max` of cgroups version 2, or the two files of version 1.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # none such, or "max": no limit
            values = " ".join(Path(_CGROUP, name).read_text() for name in names).split()
            quota, period = map(float, values)
            return quota / period if min(quota, period) > 0 else math.inf
    return math.inf


@functools.cache
def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks for the next clip instead of returning them to the system.

    The decoded frames of a clip (2 MB) otherwise cost 800 page faults, 1.7 ms on a virtual machine.
    Elsewhere than on glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


def enable_compilation_cache() -> None:
    """Turns on JAX's persistent compilation cache, in `~/.cache/tsm_jax` unless it is set.

    `JAX_COMPILATION_CACHE_DIR` names another directory; set but empty it turns the cache off.
    """
    if DIRECTORY not in os.environ:
        root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        directory = os.path.join(root, "tsm_jax", f"xla-{_processor()}")
        with suppress(OSError):  # a home that cannot be written: no cache
            os.makedirs(directory, exist_ok=True)
            _prune(directory, LIMIT_BYTES)
            os.environ[DIRECTORY] = directory
    if not _has_accelerator():
        # XLA's CPU takes two tuning hints in what it has compiled itself for missing processor
        # features, and logs a page about it as an error for every step that it loads.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _processor() -> str:
    """Tells apart processors for which XLA's CPU compiles differently; homes may be shared."""
    key = f"{platform.machine()} {_features()}"
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _features() -> str:
    """What Linux says that the processor can do; elsewhere its name."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line for line in file if line.startswith(("flags", "Features"))), "")
    return platform.processor()


def _has_accelerator() -> bool:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    return any(os.path.exists(path) for path in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0"))


def _prune(directory: str, limit_bytes: int) -> None:
    """Removes the oldest entries beyond a size: recipes and versions of jax come and go."""
    entries = sorted(os.scandir(directory), key=lambda entry: entry.stat().st_mtime, reverse=True)
    total = 0
    for entry in entries:
        total += entry.stat().st_size
        if total > limit_bytes:
            with suppress(OSError):  # another process was faster
                os.remove(entry.path)
