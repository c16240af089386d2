"""Downloads a file once and keeps it: locked against other processes, its hash recorded.

Beside the file `name` lie `name.sha256` (of what was downloaded, as `sha256sum` writes it),
`name.lock`, and until it is complete the files of `download_transfer`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from tsm_jax.errors import UserError
from tsm_jax.weights.download_address import check_address
from tsm_jax.weights.download_transfer import OnProgress, Transfer

try:
    import fcntl
except ImportError:  # Windows: two processes may then spoil each other's part, and start over
    fcntl = None


def download(
    url: str, path: Path, *, max_bytes: int, on_progress: OnProgress = lambda done, total: None
) -> Path:
    """Gives `path` back with the content of `url` in it; later calls find it there.

    Args:
        url: https; plain http only to this machine itself.
        path: where the file is to be; its folder is made.
        max_bytes: a larger file is refused, before or during the download.
        on_progress: called with the bytes so far and their total, None if the server is silent.

    Raises:
        UserError: the address is not allowed, the server refuses or keeps failing, the file is
            too large, or the file at `path` is not the one that was downloaded.
    """
    check_address(url, url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(path.name + ".lock")):
            if not path.exists():
                transfer = Transfer(url, path, max_bytes, on_progress)
                # The hash comes first, so that the file never lacks one.
                _record_hash(path, _sha256(transfer.run()))
                transfer.finish(path)
            else:
                _check_recorded_hash(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be stored: {error.strerror or error};"
            " free some space or choose another folder with TSM_JAX_CACHE"
        ) from None
    return path


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time downloads a file; the others wait and then find it."""
    with path.open("ab") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)  # closing releases it
        yield


def _hash_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_hash(path: Path, digest: str) -> None:
    temporary = _hash_file(path).with_suffix(".tmp")
    temporary.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    os.replace(temporary, _hash_file(path))


def _check_recorded_hash(path: Path) -> None:
    if not _hash_file(path).exists():
        _record_hash(path, _sha256(path))
        return
    recorded = _hash_file(path).read_text(encoding="utf-8", errors="replace").split()
    if recorded[:1] != [_sha256(path)]:
        raise UserError(
            f"{path}: is not the file that was downloaded (its SHA-256 differs from the one in"
            f" {_hash_file(path).name}); delete it and try again"
        )
