"""Manages this process's use of the machine: cores, freed memory and the compilation cache.

This module does not import jax, because the cache has to be configured before that.
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
_MMAP_THRESHOLD = 32 * 2**20  # bytes; the maximum that glibc allows
_TRIM_THRESHOLD = 512 * 2**20  # bytes

DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
LIMIT_BYTES = 4 * 2**30


_CGROUP = "/sys/fs/cgroup"  # inside a container, that of the container

_given_cores = 0


def use_cores(count: int) -> None:
    """Limits this process to `count` cores, if others are reserved for neighbouring processes.

    Call it before opening an engine.
    """
    global _given_cores
    _given_cores = count
    os.environ["NPROC"] = str(count)  # read by XLA's thread pools on a CPU


def given_cores() -> int:
    """Returns the argument of the last `use_cores` call, or 0 if there was none."""
    return _given_cores


def usable_cores() -> int:
    """Returns the number of processor cores that this process may use, at least 1.

    This is the number set by `use_cores`, else the smaller of its affinity and the quota of its
    container (`docker run --cpus`, Kubernetes limits), rounded up. The machine may have more.
    """
    if _given_cores:
        return _given_cores
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _container_quota())))


def sums_bytes_in_32_bits() -> bool:
    """Returns whether this processor sums products of bytes in 32 bits; on x86 this needs VNNI.

    False if the features of an x86 processor cannot be determined.
    """
    return platform.machine().lower() not in ("x86_64", "amd64") or "_vnni" in _features()


def _container_quota() -> float:
    """Returns the CPU quota of the container in cores, infinite without a limit.

    Reads `cpu.max` of cgroups version 2, or the two files of version 1.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # no such file, or "max": no limit
            values = " ".join(Path(_CGROUP, name).read_text() for name in names).split()
            quota, period = map(float, values)
            return quota / period if min(quota, period) > 0 else math.inf
    return math.inf


@functools.cache
def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks for the next clip instead of returning them to the system.

    Otherwise the decoded frames of a clip (2 MB) cause 800 page faults, 1.7 ms on a virtual
    machine. Does nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


def enable_compilation_cache() -> None:
    """Enables JAX's persistent compilation cache, by default in `~/.cache/tsm_jax`.

    `JAX_COMPILATION_CACHE_DIR` selects another directory; an empty value disables the cache.
    """
    if DIRECTORY not in os.environ:
        root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        directory = os.path.join(root, "tsm_jax", f"xla-{_processor()}")
        with suppress(OSError):  # without a writable home there is no cache
            os.makedirs(directory, exist_ok=True)
            _prune(directory, LIMIT_BYTES)
            os.environ[DIRECTORY] = directory
    if not _has_accelerator():
        # On a CPU, XLA mistakes two tuning hints in its own cached code for missing processor
        # features, and logs a page-long error for every step that it loads.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _processor() -> str:
    """Identifies processors for which XLA compiles differently, since homes may be shared."""
    key = f"{platform.machine()} {_features()}"
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _features() -> str:
    """Returns the processor's features as listed by Linux; on other systems its name."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line for line in file if line.startswith(("flags", "Features"))), "")
    return platform.processor()


def _has_accelerator() -> bool:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    return any(os.path.exists(path) for path in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0"))


def _prune(directory: str, limit_bytes: int) -> None:
    """Removes the oldest entries of a cache that exceeds `limit_bytes`."""
    entries = sorted(os.scandir(directory), key=lambda entry: entry.stat().st_mtime, reverse=True)
    total = 0
    for entry in entries:
        total += entry.stat().st_size
        if total > limit_bytes:
            with suppress(OSError):  # another process has removed it already
                os.remove(entry.path)
