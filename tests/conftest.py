"""Simulates eight devices on one machine and keeps all files in temporary folders."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

# XLA logs a page for each step that it loads from the cache; see tsm_jax/host.py.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# The cache below keeps the smallest programs too: together they take a tenth of the time.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest

# `TSM_JAX_TEST_PLATFORM=cuda pytest tests/models tests/parity` checks a GPU.
jax.config.update("jax_platforms", os.environ.get("TSM_JAX_TEST_PLATFORM", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)

# Many tests compile the same small networks, in the workers of pytest-xdist and in processes that
# tests start: all of them share a compilation cache.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="tsm-jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])

# Compilation takes most of the time of tests, half of it in LLVM's optimisations, which are off
# here. XLA's own passes stay on. Comparisons with a reference compile as for users; see
# tests/parity/conftest.py.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # for processes started by tests
jax.config.update("jax_disable_most_optimizations", True)

pytest_plugins = ("exported_models", "fake_ray", "small_recipe")

REPOSITORY = Path(__file__).parents[1]

# Started first, so that no worker is still busy with one of them when the others are idle.
LONG_FILES = (
    "training/test_layouts.py",
    "training/test_processes.py",
    "parity/test_train.py",
    "training/test_interrupted_training.py",
    "test_notebook.py",
    "compat/test_version1.py",
    "assemble/test_training_run.py",
    "training/test_steps.py",
    "data/prepare/test_frames_and_pack.py",
    "exporting/test_graphs.py",
    "deploy/test_views.py",
)


def pytest_collection_modifyitems(items):
    place = {REPOSITORY / "tests" / name: i for i, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))


# Hides packages, to simulate a machine without them.
HIDE = """
import sys

class Installed:
    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if not installed(name.partition(".")[0]):
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next(filter(None, found), None)

sys.meta_path[:] = [Installed(list(sys.meta_path))]
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Rendered videos of 8 classes, 24 to train on and 16 for validation; nobody changes them."""
    from tsm_jax.data import moving_shapes

    directory = tmp_path_factory.mktemp("data") / "shapes"
    moving_shapes.render(directory, train_videos=24, val_videos=16, seed=0)
    return directory


@pytest.fixture
def run_with_only():
    """Runs Python code in a process that can import only the given packages, or all packages except
    the blocked ones."""

    def run(code: str, *packages: str, blocked: tuple[str, ...] = ()):
        if blocked:
            rule = f"name not in {set(blocked)!r}"
        else:
            own = 'name in sys.stdlib_module_names or name.startswith("_sysconfigdata")'
            rule = f"{own} or name in {set(packages)!r}"
        head = f"{HIDE}\ndef installed(name):\n    return {rule}\n"
        return subprocess.run(
            [sys.executable, "-c", head + code],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=REPOSITORY,
        )

    return run
