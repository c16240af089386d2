"""A progress bar for downloads, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tsm_jax.weights.download_transfer import OnProgress


@contextmanager
def progress_bar(title: str) -> Iterator[OnProgress]:
    """Gives a function to call with the bytes so far and their total; it shows them on stderr."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, visible=False)  # a cached file shows no bar
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)
