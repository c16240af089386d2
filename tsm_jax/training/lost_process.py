"""What the processes of a run do when one of them fails or is gone: each ends with one line.

An error of one is told to the others. A process that is gone tells nothing: then jax aborts the
others, in a thread of its own that no Python handler can stop, and prints a page before. So what
C++ prints goes through a small process, which is this file run as a program. Not through a thread:
it would die with the others, or wait for the interpreter lock while a full pipe waits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

_FAILURE = "tsm_jax/failure"
_POLL_SECONDS = 0.5
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


def announce(store: Any, message: str) -> None:
    """Tells the others of an error here, and waits until they have read it and ended."""
    # If another process was first, or has ended the run already, nobody needs the message.
    with suppress(Exception):
        store.key_value_set(_FAILURE, message)
    time.sleep(_linger_seconds())


def end_with_others(store: Any, stopped: threading.Event) -> None:
    """Ends this process at an error that another one announces, until `stopped`.

    A process that waits for the others in a collective operation cannot notice that one of them
    is gone, or only minutes later and without its reason.
    """
    while not stopped.wait(_POLL_SECONDS):
        try:
            message = store.key_value_try_get(_FAILURE)
        except Exception as error:
            if "NOT_FOUND" in str(error):
                continue
            # If jax notices first, it aborts this process.
            message = "process 0 is gone: its output or its launcher's says why"
        if not stopped.is_set():
            print_and_exit(message, _linger_seconds())


def _linger_seconds() -> float:
    """How long to stay when something failed, so that all others can read it.

    Process 0 leaves last: it keeps the store, and jax aborts the others when that is gone.
    """
    import jax  # late: what this file does as a program needs none

    return (6 if jax.process_index() == 0 else 3) * _POLL_SECONDS


def print_and_exit(message: str, linger_seconds: float = 0.0) -> None:
    """Ends the process from a thread: its main thread may wait for ever."""
    sys.stdout.flush()
    # Not by `sys.stderr`, which goes past what keeps jax from telling it again.
    os.write(2, f"error: {message}\n".encode(errors="backslashreplace"))
    time.sleep(linger_seconds)
    os._exit(1)


def leave(code: int) -> None:
    """Ends the process at exit, without jax's shutdown, which would wait for dead processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
