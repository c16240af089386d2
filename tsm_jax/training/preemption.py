"""Preemption by a scheduler: the current step is finished and saved, and the exit code is 75.

SLURM, Kubernetes and spot instances send SIGTERM some seconds before they kill a process (with
`--signal`, SLURM sends another signal, usually SIGUSR1).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

EXIT_CODE = 75  # EX_TEMPFAIL: try again
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(Exception):
    """A signal stopped the run, and its checkpoints are on disk; the same command continues it."""


class Preemption:
    """Records a scheduler's signal while it is entered; must be entered in the main thread.

    The first signal sets `noted`. If there is nothing to save yet (`steps_taken` has not been
    called), it instead ends the process at once with exit code 75, even during a compilation. A
    second SIGTERM more than `same_signal_seconds` after the first ends the process at once with
    143; an earlier one may be the same signal, passed on by both a scheduler and a launcher.
    """

    def __init__(self, same_signal_seconds: float = 1.0) -> None:
        self.noted = False
        self._same_signal_seconds = same_signal_seconds
        self._nothing_to_save = True
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        # Python runs its handlers between two instructions of the main thread, which may take a
        # minute while XLA compiles. The byte in this pipe is written at once.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in SIGNALS:
            self._before[number] = signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, name="preemption", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._writer)  # ends the thread

    def steps_taken(self) -> None:
        """Makes later signals wait until the loop has saved."""
        self._nothing_to_save = False

    def _watch(self) -> None:
        first_term = None
        while number := os.read(self._reader, 1):
            if number[0] not in SIGNALS:
                continue
            if self._nothing_to_save:
                print("preempted before the first step: nothing to save", flush=True)
                os._exit(EXIT_CODE)
            self.noted = True
            if number[0] == signal.SIGTERM:
                first_term = first_term or time.monotonic()
                if time.monotonic() - first_term > self._same_signal_seconds:
                    os._exit(128 + signal.SIGTERM)
        os.close(self._reader)
