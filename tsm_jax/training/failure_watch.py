"""The error of one process ends all, and each prints it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import jax

from tsm_jax.errors import UserError

_FAILURE = "tsm_jax/failure"
_POLL_SECONDS = 0.5


def store() -> Any:
    """The store and barriers that the processes share, for which jax has no public name."""
    from jax._src.distributed import global_state

    return global_state.client


class FailureWatch:
    """Tells the other processes of an error here, and ends this one at an error of theirs.

    A process that waits for the others in a collective operation cannot notice that one of them
    is gone, or only minutes later and without its reason.
    """

    def __init__(self) -> None:
        self._client = store()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        if self._client is not None:
            self._thread.start()

    def announce(self, error: BaseException) -> None:
        """Tells the others, and waits until they have heard it and ended."""
        self.stop()
        if self._client is None:
            return
        text = " ".join(str(error).split()) if isinstance(error, UserError) else repr(error)
        message = f"process {jax.process_index()} of {jax.process_count()}: {text}"
        # If another process was first, or has ended the run already, there is nothing to tell.
        with suppress(Exception):
            self._client.key_value_set(_FAILURE, message)
        time.sleep(_linger_seconds())

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            try:
                message = self._client.key_value_try_get(_FAILURE)
            except Exception as error:
                if "NOT_FOUND" in str(error):
                    continue
                # If jax notices first, it aborts this process (launch/local.py hides its trace).
                message = "process 0 is gone: its output or its launcher's says why"
            if not self._stopped.is_set():
                print_and_exit(message, _linger_seconds())


def _linger_seconds() -> float:
    """How long to stay when something failed, so that all others hear of it while they can.

    Process 0 leaves last: it keeps the store, and jax aborts the others when that is gone.
    """
    return (6 if jax.process_index() == 0 else 3) * _POLL_SECONDS


def print_and_exit(message: str, linger_seconds: float = 0.0) -> None:
    """Ends the process from a thread: its main thread may wait for ever."""
    sys.stdout.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    time.sleep(linger_seconds)
    os._exit(1)


def skip_the_farewell(code: int) -> None:
    """Leaves without the barrier of jax's shutdown, at which dead processes would be awaited."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(leave)
