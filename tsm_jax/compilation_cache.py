"""Compiled steps are kept on disk, so that only the first start of a recipe waits for XLA.

Without jax: this has to happen before jax is imported.
"""

from __future__ import annotations

import hashlib
import os
import platform
from contextlib import suppress

DIRECTORY = "JAX_COMPILATION_CACHE_DIR"
LIMIT_BYTES = 4 * 2**30


def enable() -> None:
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
    features = platform.processor()
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        features = next((line for line in file if line.startswith(("flags", "Features"))), "")
    key = f"{platform.machine()} {features}"
    return hashlib.sha256(key.encode()).hexdigest()[:12]


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
