"""What a process does on a scheduler's signal, tested in separate processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tsm_jax.training.preemption import Preemption

START = """
import hashlib, time
from tsm_jax.training.preemption import Preemption
with Preemption() as preemption:
    print("ready", flush=True)
"""
# Like a compilation, during which Python's own handlers wait for minutes.
DEEP_IN_C = START + "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
SAVING = (
    START.replace("    print", "    preemption.steps_taken()\n    print").replace(
        "Preemption()", "Preemption({same_signal_seconds})"
    )
    + "    time.sleep(600)\n"
)


@pytest.fixture
def started():
    processes = []

    def start(program):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        processes.append(process)
        assert process.stdout.readline() == b"ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_process_ends_at_once_if_there_is_nothing_to_save(started, number):
    process = started(DEEP_IN_C)
    process.send_signal(number)
    assert process.wait() == 75
    assert b"nothing to save" in process.stdout.read()


def test_a_sigterm_repeated_by_a_launcher_does_not_end_the_process(started):
    process = started(SAVING.format(same_signal_seconds=3600))
    process.send_signal(signal.SIGUSR1)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    assert process.poll() is None


def test_a_second_sigterm_ends_the_process_at_once(started):
    process = started(SAVING.format(same_signal_seconds=0))
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert process.returncode == 143


@pytest.fixture
def interruptible():
    """A shell starts background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_still_interrupts_and_handlers_are_restored(interruptible):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        assert signal.getsignal(signal.SIGTERM) != before[0]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert not preemption.noted
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1
