"""The page that runs an exported stream in a browser, beside its graph.

What is ours (`page/`) is built from demo/ and part of this package. ONNX Runtime for browsers is a
package of npm, too large to carry along: it is taken from demo/node_modules, else npm fetches it
once into the cache of this user. The page itself loads nothing from anywhere else.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from tsm_jax.errors import UserError
from tsm_jax.files import reason, sha256

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"

# The first two run on a processor, the other two on a graphics card where a browser has WebGPU.
RUNTIME = (
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
# Of the release: SHA-256 of their SHA-256. Other files are not given away.
_DIGEST = "c23cbdb3d727a0faa967e1c7b7f689b33613228119ffa0ca609f320dade12dca"

_FETCH_TIMEOUT = 600  # seconds


def add_page(folder: str) -> None:
    """Copies the page and its runtime into an exported folder.

    Raises:
        UserError: the runtime is not here and npm cannot fetch it.
    """
    runtime = _runtime()
    page = resources.files("tsm_jax.exporting") / "page"
    for file in page.iterdir():
        with resources.as_file(file) as path:
            shutil.copyfile(path, os.path.join(folder, file.name))
    _copy(runtime, Path(folder, "ort"))


def _copy(runtime: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in RUNTIME:
        shutil.copyfile(runtime / name, target / name)


def _runtime() -> Path:
    """A folder with the files of `RUNTIME`."""
    checkout = Path(__file__).parents[2] / "demo" / "node_modules" / PACKAGE / "dist"
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    cached = Path(root, "tsm_jax", f"{PACKAGE}-{VERSION}")
    for folder in (checkout, cached):
        if _is_whole(folder):
            return folder
    _fetch(cached)
    if not _is_whole(cached):
        raise UserError(f"npm gave other files of {PACKAGE} {VERSION} than its release has")
    return cached


def _is_whole(folder: Path) -> bool:
    paths = [folder / name for name in RUNTIME]
    if not all(path.is_file() for path in paths):
        return False
    return hashlib.sha256("".join(map(sha256, paths)).encode()).hexdigest() == _DIGEST


def _fetch(target: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"--browser needs {PACKAGE} {VERSION}, which npm fetches: install Node.js (for npm) and"
            " run the same command again"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "install", "--prefix", folder, "--ignore-scripts", "--no-audit"]
        try:
            done = subprocess.run(
                [*command, f"{PACKAGE}@{VERSION}"],
                capture_output=True,
                text=True,
                timeout=_FETCH_TIMEOUT,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"npm cannot fetch {PACKAGE}: {reason(error)}") from None
        if done.returncode:
            why = " ".join(done.stderr.split())[:300]
            raise UserError(f"npm cannot fetch {PACKAGE} {VERSION}: {why}")
        try:
            _copy(Path(folder, "node_modules", PACKAGE, "dist"), target)
        except OSError as error:
            raise UserError(f"cannot keep {PACKAGE} in {target}: {reason(error)}") from error
