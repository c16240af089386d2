"""Terminal output: text without control codes, commands as the user types them, progress bars."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

Item = TypeVar("Item")

# C0 and C1 control codes, and surrogates that stand for bytes of a name that is not UTF-8.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: object) -> str:
    r"""Escapes control codes, for example as `\x1b`, so that text stays on one line.

    Names of files and classes are untrusted: they may contain escape sequences, line breaks, marks
    that reverse the writing direction, or bytes that are not UTF-8.
    """
    return _UNPRINTABLE.sub(_escaped, str(text))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode could not decode
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


MODULES = "python -m tsm_jax."


def typed(command: str) -> str:
    """Returns a command in the style of this process: `tsm train` or `python -m tsm_jax.train`."""
    return launcher() + command


def launcher() -> str:
    """Returns the text before a verb in a command, with a trailing space or dot."""
    folder, name = os.path.split(sys.argv[0])
    if os.path.splitext(name)[0] == "tsm":
        return "tsm "
    if name == "__main__.py" and os.path.basename(folder) == "tsm_jax":
        return "python -m tsm_jax "
    return MODULES


class UpdateBar(Protocol):
    """Shows progress and the total (None: unknown), and optionally a note in place of the ETA."""

    def __call__(self, done: int, total: int | None, note: str = "") -> None: ...


@contextmanager
def progress_bar(title: str, *, in_bytes: bool = False) -> Iterator[UpdateBar]:
    """Yields a function that updates a progress bar.

    The bar is written to stderr if that is a terminal, appears on the first call and disappears at
    the end.
    """
    if not sys.stderr.isatty():
        yield lambda done, total, note="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Remaining(TimeRemainingColumn):
        max_refresh = None  # show a note immediately

        def render(self, task: Task) -> Text:
            note = task.fields["note"]
            return Text(note, style="progress.remaining") if note else super().render(task)

    numbers = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *numbers)
    with Progress(
        *columns,
        Remaining(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # lines for a file or a pipe must not go to stderr
    ) as bar:
        task = bar.add_task(printable(title), visible=False, note="")
        yield lambda done, total, note="": bar.update(
            task, completed=done, total=total, note=note, visible=True
        )


def progress(items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """Yields `items`, with a progress bar on stderr if that is a terminal."""
    with progress_bar(title) as update:
        for done, item in enumerate(items, start=1):
            yield item
            update(done, total)
