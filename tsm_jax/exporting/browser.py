"""Adds the web page that runs an exported stream in a browser to the exported folder.

The page (`page/`) is built from demo/ and is part of this package. ONNX Runtime for browsers is an
npm package, too large to include: it is taken from demo/node_modules if it is there; otherwise npm
downloads it once into the cache of the user. The page loads nothing from other hosts.
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

# The first two files run on the CPU, the other two on the GPU in browsers that support WebGPU.
RUNTIME = (
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.bundle.min.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
# SHA-256 of the SHA-256 of these files in the release; files with another one are not used.
_DIGEST = "c23cbdb3d727a0faa967e1c7b7f689b33613228119ffa0ca609f320dade12dca"

_FETCH_TIMEOUT = 600  # seconds


def add_page(folder: str) -> None:
    """Copies the page and its runtime into an exported folder.

    Raises:
        UserError: the runtime is not installed and npm cannot download it.
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
    """Returns a folder that contains the files of `RUNTIME`; downloads them if necessary."""
    checkout = Path(__file__).parents[2] / "demo" / "node_modules" / PACKAGE / "dist"
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    cached = Path(root, "tsm_jax", f"{PACKAGE}-{VERSION}")
    for folder in (checkout, cached):
        if _is_whole(folder):
            return folder
    _fetch(cached)
    if not _is_whole(cached):
        raise UserError(
            f"the files of {PACKAGE} {VERSION} that npm downloaded differ from the release:"
            " check npm's registry setting"
        )
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
            f"--browser needs {PACKAGE} {VERSION}, which is downloaded with npm: install Node.js"
            " (which includes npm) and run the same command again"
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
            raise UserError(f"npm cannot download {PACKAGE}: {reason(error)}") from None
        if done.returncode:
            why = " ".join(done.stderr.split())[:300]
            raise UserError(f"npm cannot download {PACKAGE} {VERSION}: {why}")
        try:
            _copy(Path(folder, "node_modules", PACKAGE, "dist"), target)
        except OSError as error:
            raise UserError(f"cannot store {PACKAGE} in {target}: {reason(error)}") from error
