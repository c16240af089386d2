"""One line instead of a stack trace, where jax aborts a process because another one is gone.

jax does so in a thread of its own that no Python handler can stop, and prints a page before. So
what C++ prints goes through a small process, which is this file run as a program. Not through a
thread: it would die with the others, or wait for the interpreter lock while a full pipe waits.
"""

from __future__ import annotations

import os
import subprocess
import sys

# How jax begins that page; what follows it is the trace.
_BEGINNINGS = (
    b"Polled an error from coordination service",
    b"JAX distributed service detected fatal errors",
)
_LINE = (
    b"error: another process of this run, or the connection to it, is gone: its output or its"
    b" launcher's says why\n"
)


def shorten_aborts() -> None:
    """From now on the standard error output of this process has that line in place of the page.

    `sys.stderr` writes where it did, so that a terminal stays one.
    """
    direct = os.dup(2)
    reader, writer = os.pipe()
    # In a session of its own: a signal to the group must not end it before this process.
    command = [sys.executable, "-I", "-S", __file__]
    subprocess.Popen(command, stdin=reader, stderr=direct, start_new_session=True)
    os.close(reader)
    sys.stderr.flush()
    sys.stderr = os.fdopen(direct, "w", buffering=1, errors="backslashreplace")
    os.dup2(writer, 2)
    os.close(writer)


def _pass_on() -> None:
    """Copies the standard input to the standard error output until its last writer has ended."""
    told = False  # by the process itself, which noticed before jax did
    with os.fdopen(0, "rb") as source:
        for line in source:
            if any(words in line for words in _BEGINNINGS):
                if not told:
                    os.write(2, _LINE)
                break
            told = told or line.startswith(b"error: ")
            os.write(2, line)
        for _ in source:
            pass


if __name__ == "__main__":
    _pass_on()
