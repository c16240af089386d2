"""Runs with several processes: how they are detected, and that they end together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tsm_jax.errors import UserError
from tsm_jax.training import lost_process, processes

LAUNCH = Path(__file__).parents[2] / "launch" / "local.py"
VARIABLES = (processes.ADDRESS, processes.COUNT, processes.INDEX, "SLURM_NTASKS")


@pytest.fixture
def environment(monkeypatch):
    for name in (*VARIABLES, "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)

    def use(*values, **others):
        for name, value in [*zip(VARIABLES, values, strict=False), *others.items()]:
            monkeypatch.setenv(name, value)
        return processes.distributed_arguments()

    return use


def test_a_single_process_needs_no_setup(environment):
    assert environment() is None
    with processes.joined():
        pass
    assert environment("host:1234", "1", "0") is None


def test_several_processes_are_detected_from_variables_and_schedulers(environment):
    assert environment("host:1234", "4", "3") == {
        "coordinator_address": "host:1234",
        "num_processes": 4,
        "process_id": 3,
        "cluster_detection_method": "deactivate",
    }
    slurm = {"SLURM_NTASKS": "16", "SLURM_STEP_NODELIST": "node[1-2]"}
    assert environment("", "", "", **slurm) == {"cluster_detection_method": "slurm"}
    # A batch script outside of srun is one process, however many tasks it requested.
    assert environment("", "", "", SLURM_STEP_NODELIST="", SLURM_NTASKS="1") is None


@pytest.mark.parametrize(
    "values, message",
    [
        (("host:1",), "has JAX_COORDINATOR_ADDRESS but not JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
        (("host:1", "two", "0"), "JAX_NUM_PROCESSES=two"),
        (("host:1", "2", "2"), "JAX_PROCESS_ID=2 must be less than JAX_NUM_PROCESSES=2"),
        (("host", "2", "0"), "JAX_COORDINATOR_ADDRESS=host must be HOST:PORT"),
    ],
)
def test_contradictions_are_named(environment, values, message):
    with pytest.raises(UserError, match=message):
        environment(*values)


PROGRAM = """
import os, sys
from tsm_jax import cli
from tsm_jax.errors import UserError
from tsm_jax.training.processes import check_shared, from_first, joined
index = int(os.environ["JAX_PROCESS_ID"])

def main(arguments):
    with joined(timeout_seconds=float(os.environ.get("SECONDS", 300))):
        run()

def run():
{body}

cli.run(main)
"""


@pytest.fixture
def two_processes(tmp_path):
    def run(body):
        (tmp_path / "program.py").write_text(PROGRAM.format(body=body))
        path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        return subprocess.run(
            [sys.executable, LAUNCH, "--processes=2", "--devices=1", "--module=program"],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            timeout=300,
            cwd=tmp_path,
        )

    return run


def test_processes_agree_and_detect_a_directory_that_is_not_shared(two_processes):
    result = two_processes(
        """
    print("first", from_first(10 + index))
    check_shared("work")
    os.makedirs(str(index))
    os.chdir(str(index))
    check_shared("work")
"""
    )
    assert result.returncode == 1
    for index in "01":
        assert f"[{index}] first 10\n" in result.stdout
        assert f"[{index}] error: " in result.stdout
    assert "is not the same directory for all 2 processes" in result.stdout
    assert "stack trace" not in result.stdout


BROKEN = "the connection to another process broke: see the output of that process or its launcher"


@pytest.mark.parametrize(
    "failing, error, message",
    [
        (0, 'UserError("clip.mp4 is broken")', "clip.mp4 is broken"),
        (1, 'RuntimeError("Gloo AllGather failed: reset\\nstack trace")', BROKEN),
    ],
)
def test_an_error_in_one_process_ends_all_and_all_print_it(two_processes, failing, error, message):
    result = two_processes(
        f"""
    from_first(0)
    if index == {failing}:
        raise {error}
    from_first(1)  # waits for the one that is gone
"""
    )
    assert result.returncode == 1
    assert f"[{failing}] error: {message}" in result.stdout
    assert f"[{1 - failing}] error: process {failing} of 2: {message}" in result.stdout
    assert "stack trace" not in result.stdout
    assert "killed" not in result.stderr


def test_a_process_that_is_killed_ends_the_others(two_processes):
    result = two_processes(
        """
    from_first(0)
    if index == 1:
        os.kill(os.getpid(), 9)
    from_first(1)
"""
    )
    assert result.returncode == 137
    assert "process 1 was killed by SIGKILL" in result.stderr
    assert "[0] error: the connection to another process broke" in result.stdout
    assert "Traceback" not in result.stdout


def test_without_process_0_the_other_ends_with_one_line(tmp_path):
    body = """
    from_first(0)
    print("connected", flush=True)
    os.system("echo of another program >&2")
    said = __file__ + ".said"
    if index == 1:
        open(said, "w").close()
    else:
        while not os.path.exists(said):
            pass
        os.kill(os.getpid(), 9)
    from_first(1)
"""
    (tmp_path / "program.py").write_text(PROGRAM.format(body=body))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, tmp_path / "program.py"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **place},
        )
        for place in (
            {processes.ADDRESS: address, processes.COUNT: "2", processes.INDEX: str(index)}
            for index in range(2)
        )
    ]
    _, (out, errors) = (process.communicate(timeout=300) for process in started)
    assert [process.returncode == 0 for process in started] == [False, False]
    assert "connected" in out
    other, line = errors.splitlines()
    assert other == "of another program"
    assert line.startswith("error: ")
    assert "lost" in line or "broke" in line


def test_a_process_reports_that_the_others_do_not_appear(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.format(body="    pass"))
    place = {processes.ADDRESS: "127.0.0.1:1", processes.COUNT: "2", processes.INDEX: "1"}
    result = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        capture_output=True,
        text=True,
        env={**os.environ, **place, "SECONDS": "1", "JAX_PLATFORMS": "cpu"},
        timeout=300,
    )
    assert result.returncode == 1
    assert result.stderr == (
        "error: process 1 of 2 did not find all others at 127.0.0.1:1 within 1 s: check that all"
        " are running and can reach that address\n"
    )


PAGE = "E0101 Polled an error from coordination service: gone\n  @ 0x1 a stack trace\n"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("of another\n" + PAGE, "of another\n" + lost_process._LINE.decode()),
        ("error: lost process 0\n" + PAGE, "error: lost process 0\n"),
        ("error: clip.mp4\nlast\n", "error: clip.mp4\nlast\n"),
    ],
)
def test_only_the_first_to_notice_reports_a_lost_process(said, shown):
    command = [sys.executable, lost_process.__file__]
    passed_on = subprocess.run(command, input=said, capture_output=True, text=True, timeout=60)
    assert passed_on.stderr == shown
