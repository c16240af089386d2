#!/usr/bin/env python
"""Runs one training in several processes on this machine.

    python launch/local.py --processes 2 -- --config configs/quickstart.py

Each process uses one GPU or, with `--devices M`, simulates M devices on the CPU. Arguments after
`--` are passed to `tsm_jax.train` in each process. Output lines are prefixed with the index of the
process, and signals are forwarded. If a process fails, the others are terminated after `--grace`
seconds; the exit code is that of the first process that failed.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def main() -> int:
    options = parse(sys.argv[1:])
    command = [sys.executable, "-u", "-m", options.module, *options.arguments]
    address = f"127.0.0.1:{free_port()}"
    children: list[subprocess.Popen[str]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    for index in range(options.processes):
        environment = {**os.environ, **variables(options, index, address)}
        # In a separate session, so that Ctrl-C reaches it only once, through `pass_on`.
        child = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        children.append(child)
    return wait(children, options.grace)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/local.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    parser.add_argument(
        "--devices",
        type=int,
        metavar="M",
        help="CPU devices per process (default: use one GPU per process)",
    )
    parser.add_argument(
        "--module", default="tsm_jax.train", help="module to run (default: %(default)s)"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="time for the other processes to exit after one has failed (default: %(default)s)",
    )
    parser.add_argument(
        "arguments", nargs="*", metavar="-- ARGUMENT", help="arguments of the module"
    )
    options = parser.parse_args(arguments)
    if options.processes < 1 or (options.devices is not None and options.devices < 1):
        parser.error("--processes and --devices must be at least 1")
    return options


def variables(options: argparse.Namespace, index: int, address: str) -> dict[str, str]:
    """Returns the environment variables that assign a process its index and devices.

    See tsm_jax/training/processes.py.
    """
    place = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,  # must not be reachable from other machines
        "JAX_NUM_PROCESSES": str(options.processes),
        "JAX_PROCESS_ID": str(index),
    }
    if options.devices is None:
        return {**place, "JAX_LOCAL_DEVICE_IDS": str(index)}
    return {**place, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(options.devices)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(children: list[subprocess.Popen[str]], grace: float) -> int:
    """Prints the output of the processes until all have ended; returns the exit code."""
    ended: queue.Queue[int] = queue.Queue()
    threads = [
        threading.Thread(target=show, args=(index, child, ended), daemon=True)
        for index, child in enumerate(children)
    ]
    for thread in threads:
        thread.start()
    code, running, deadline = 0, len(children), float("inf")
    while running:
        try:
            index = ended.get(timeout=0.2)
        except queue.Empty:
            if time.monotonic() > deadline:
                say("terminating the other processes")
                for child in children:
                    child.kill()
                deadline = float("inf")
            continue
        running -= 1
        result = children[index].wait()
        if result and not code:
            say(f"process {index} {how_it_ended(result)}")
            code = 128 - result if result < 0 else result
            deadline = time.monotonic() + grace
    return code


def how_it_ended(result: int) -> str:
    if result < 0:
        return f"was killed by {signal.Signals(-result).name}"
    return f"ended with exit code {result}"


def say(text: str) -> None:
    print(f"[launch] {text}", file=sys.stderr, flush=True)


def show(index: int, child: subprocess.Popen[str], ended: queue.Queue[int]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("[Gloo] Rank"):  # only reports that the connection works
            continue
        sys.stdout.write(f"[{index}] {line}")
        sys.stdout.flush()
    child.wait()
    ended.put(index)


if __name__ == "__main__":
    sys.exit(main())
