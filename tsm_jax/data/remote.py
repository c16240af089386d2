"""Videos behind `gs://` and `s3://` addresses: copied to this machine while they are read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tsm_jax.errors import StopJobsError, UnreadableClipError
from tsm_jax.files import reason

_SCHEMES = ("gs://", "s3://", "az://")  # that `epath` hands to fsspec


def is_remote(path: str | Path) -> bool:
    """Whether it is the address of an object in a bucket."""
    return str(path).startswith(_SCHEMES)


def exists(path: str | Path) -> bool:
    """Whether there is such a file, folder or object; where it cannot be reached, there is none."""
    if not is_remote(path):
        return os.path.exists(path)
    from etils import epath

    try:
        return epath.Path(path).exists()
    except Exception:  # each store has its own
        return False


@contextmanager
def local_copy(path: str | Path) -> Iterator[str]:
    """The path of a video on this machine: itself, or a copy that is deleted afterwards.

    Raises:
        UnreadableClipError: there is no such object, or what is done with the file raises one.
        StopJobsError: the bucket cannot be reached; then nor can the others be.
    """
    path = os.fspath(path)
    if not is_remote(path):
        yield path
        return
    from etils import epath

    with tempfile.TemporaryDirectory(prefix="tsm_jax-") as folder:
        copy = os.path.join(folder, os.path.basename(path))  # FFmpeg knows some formats by name
        try:
            with epath.Path(path).open("rb") as source, open(copy, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
        except FileNotFoundError as error:
            raise UnreadableClipError(f"cannot read the video {path}: there is none") from error
        except ImportError as error:
            raise StopJobsError(
                f"{path} cannot be reached: {reason(error)} (for gs://, pip install gcsfs; for"
                " s3://, pip install s3fs)"
            ) from error
        except Exception as error:  # each store has its own
            raise StopJobsError(f"cannot read {path}: {reason(error)}") from error
        try:
            yield copy
        except UnreadableClipError as error:
            raise UnreadableClipError(str(error).replace(copy, path)) from error
