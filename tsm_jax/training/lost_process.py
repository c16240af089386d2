"""Ends all processes of a run with a one-line message when one of them fails or is lost.

A process that fails announces its error to the others. A lost process cannot: jax then aborts the
others from a thread that no Python handler can stop, after printing a page of text. What C++ prints
to standard error therefore passes through a small helper process, which is this file run as a
program. A thread would not do: it would die with its process, or wait for the interpreter lock
while a full pipe waits for it.
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
# Beginnings of the page that jax prints; a stack trace follows.
_BEGINNINGS = (
    b"Polled an error from coordination service",
    b"JAX distributed service detected fatal errors",
)
_LINE = (
    b"error: lost another process of this run, or the connection to it: see the output of that"
    b" process or its launcher for the reason\n"
)


def shorten_aborts() -> None:
    """Replaces the page that jax prints on abort with one line in this process's standard error.

    `sys.stderr` keeps writing to the original destination, so a terminal remains a terminal.
    """
    direct = os.dup(2)
    reader, writer = os.pipe()
    # In its own session: a signal to the process group must not end it before this process.
    command = [sys.executable, "-I", "-S", __file__]
    subprocess.Popen(command, stdin=reader, stderr=direct, start_new_session=True)
    os.close(reader)
    sys.stderr.flush()
    sys.stderr = os.fdopen(direct, "w", buffering=1, errors="backslashreplace")
    os.dup2(writer, 2)
    os.close(writer)


def announce(store: Any, message: str) -> None:
    """Announces an error to the other processes, and gives them time to read it and exit."""
    # If another process was first or has already ended the run, nobody needs the message.
    with suppress(Exception):
        store.key_value_set(_FAILURE, message)
    time.sleep(_linger_seconds())


def end_with_others(store: Any, stopped: threading.Event) -> None:
    """Ends this process when another one announces an error; returns when `stopped` is set.

    A process that waits in a collective operation would notice the loss of another one only minutes
    later and without the reason, or never.
    """
    while not stopped.wait(_POLL_SECONDS):
        try:
            message = store.key_value_try_get(_FAILURE)
        except Exception as error:
            if "NOT_FOUND" in str(error):
                continue
            # If jax notices first, it aborts this process.
            message = "lost process 0: see its output or that of its launcher for the reason"
        if not stopped.is_set():
            print_and_exit(message, _linger_seconds())


def _linger_seconds() -> float:
    """Returns how long to stay alive after a failure, so that all others can read the message.

    Process 0 leaves last: it holds the store, and jax aborts the others once the store is gone.
    """
    import jax  # late: this file, run as a program, does not need jax

    return (6 if jax.process_index() == 0 else 3) * _POLL_SECONDS


def print_and_exit(message: str, linger_seconds: float = 0.0) -> None:
    """Ends the process from any thread: the main thread may be blocked forever."""
    sys.stdout.flush()
    # Not through `sys.stderr`, which bypasses the helper that suppresses jax's own report.
    os.write(2, f"error: {message}\n".encode(errors="backslashreplace"))
    time.sleep(linger_seconds)
    os._exit(1)


def leave(code: int) -> None:
    """Ends the process at exit without jax's shutdown, which would wait for dead processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _filter_stderr() -> None:
    """Copies standard input to standard error, without jax's page, until its last writer exits."""
    reported = False  # by the process itself, before jax noticed
    with os.fdopen(0, "rb") as source:
        for line in source:
            if any(words in line for words in _BEGINNINGS):
                if not reported:
                    os.write(2, _LINE)
                break
            reported = reported or line.startswith(b"error: ")
            os.write(2, line)
        for _ in source:
            pass


if __name__ == "__main__":
    _filter_stderr()
