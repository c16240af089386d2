"""Files that hang, crash or fail affect only themselves."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest

from tsm_jax.data.prepare.jobs import JobFailure, run_jobs
from tsm_jax.errors import UserError


def job(item):
    match item:
        case "hangs":
            time.sleep(600)
        case "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "fails":
            raise UserError("two\nlines")
        case "defect":
            raise KeyError("ours")
        case "killed":
            # Killed while the pipe transfers the result, 64 kB at a time.
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
            return bytes(1 << 28)
        case "slow":
            time.sleep(0.3)
    return str(item)


def test_results_come_in_order_whatever_happens_to_others():
    items = ["slow", 1, "hangs", 2, "crashes", 3, "fails", 4]
    results = list(run_jobs(job, items, processes=2, seconds=1.5))
    assert [item for item, _ in results] == items
    reasons = [result.reason for _, result in results if isinstance(result, JobFailure)]
    assert reasons == ["timed out after 1.5 s", "the decoder crashed (exit code -11)", "two lines"]
    assert [result for _, result in results if isinstance(result, str)] == ["slow", *"1234"]


def test_our_bug_is_not_blamed_on_the_file():
    with pytest.raises(RuntimeError, match="KeyError: 'ours'"):
        list(run_jobs(job, ["defect"], processes=1))


def test_items_are_taken_as_they_are_needed():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    jobs = run_jobs(job, items(), processes=1)
    next(jobs)
    assert len(taken) < 20
    jobs.close()


def test_no_process_survives_an_interruption():
    jobs = run_jobs(job, ["slow", "hangs", "hangs", "hangs"], processes=2)
    next(jobs)
    with pytest.raises(KeyboardInterrupt):
        jobs.throw(KeyboardInterrupt)
    assert multiprocessing.active_children() == []


def test_a_process_killed_while_it_answers_affects_no_other():
    items = [1, 2, "killed", 3, 4, 5]
    results = [result for _, result in run_jobs(job, items, processes=2, seconds=20)]
    assert results.pop(2) == JobFailure("the decoder crashed (exit code -9)", "crashed", -9)
    assert results == list("12345")


def test_nothing_to_do():
    assert list(run_jobs(job, [], processes=1)) == []
