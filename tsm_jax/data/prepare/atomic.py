"""Files that appear complete or not at all, whenever the process is killed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tsm_jax.errors import UserError


def write_lines(path: str | Path, lines: Sequence[str]) -> None:
    """Writes a text file in place of what was there.

    Names of files that are not UTF-8 are written as the bytes they are.

    Raises:
        UserError: it cannot be written.
    """
    path = Path(path)
    # One name per target: what a killed process left there is overwritten by the next one.
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.writelines(f"{line}\n" for line in lines)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place") from error


def write_failures(path: str | Path, failures: Sequence[tuple[str, str]]) -> None:
    """Writes `name <tab> reason` lines, or removes the file where nothing failed."""
    if failures:
        write_lines(path, [f"{name}\t{reason}" for name, reason in failures])
    else:
        Path(path).unlink(missing_ok=True)
