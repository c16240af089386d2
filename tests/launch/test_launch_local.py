"""launch/local.py: places, prefixes, exit codes, signals; without jax, so that it is quick."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch" / "local.py"


@pytest.fixture
def launch(tmp_path):
    def start(program, *options, **popen):
        (tmp_path / "program.py").write_text("import os, signal, sys, time\n" + program)
        path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        return subprocess.Popen(
            [sys.executable, LAUNCH, "--processes=2", "--module=program", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            **popen,
        )

    return start


def test_each_process_learns_its_place_and_gets_the_arguments(launch):
    names = ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES", "JAX_NUM_CPU_DEVICES", "JAX_PLATFORMS")
    program = f"print([os.environ[n] for n in {names}], os.environ['JAX_COORDINATOR_ADDRESS'])\n"
    process = launch(program + "print(sys.argv[1:])", "--devices=3", "--", "--config", "a b")
    lines = process.communicate(timeout=300)[0].splitlines()
    assert process.returncode == 0
    for index in "01":
        place, arguments = (line for line in lines if line.startswith(f"[{index}]"))
        assert place.startswith(f"[{index}] ['{index}', '2', '3', 'cpu'] 127.0.0.1:")
        assert arguments == f"[{index}] ['--config', 'a b']"
    addresses = {line.split()[-1] for line in lines if "127.0.0.1" in line}
    assert len(addresses) == 1


def test_without_devices_each_process_gets_the_gpu_of_its_number(launch):
    process = launch("print(os.environ['JAX_LOCAL_DEVICE_IDS'], os.environ.get('JAX_PLATFORMS'))")
    platforms = os.environ.get("JAX_PLATFORMS")
    out = process.communicate(timeout=300)[0]
    assert sorted(out.splitlines()) == [f"[{index}] {index} {platforms}" for index in "01"]


DIES = """
if os.environ['JAX_PROCESS_ID'] == '1':
    {death}
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(600)
"""


@pytest.mark.parametrize(
    "death, code, told",
    [
        ("sys.exit(3)", 3, "process 1 ended with exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "process 1 was killed by SIGKILL"),
    ],
)
def test_when_one_dies_the_rest_is_ended(launch, death, code, told):
    process = launch(DIES.format(death=death), "--grace=0.5")
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == code
    assert told in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_every_process(launch, number):
    # Short sleeps: a signal just before a long one starts would only be handled after it.
    program = (
        f"signal.signal({int(number)}, lambda *_: (print('heard', flush=True), os._exit(75)))\n"
        "print('ready', flush=True)\nwhile True: time.sleep(0.05)"
    )
    process = launch(program)
    assert process.stdout is not None
    assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(number)
    out = process.communicate(timeout=300)[0]
    assert sorted(out.splitlines()) == ["[0] heard", "[1] heard"]
    assert process.returncode == 75
