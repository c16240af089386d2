"""Commands whose standard output fails."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from tsm_jax import cli

def main(_):
    {code}

cli.run(main, [])
"""


def run(code, stdout, **environment):
    """Runs a command with `code` as its body."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(code=code.replace("\n", "\n    "))],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


# Without a buffer, the first print fails already.
ENDS = [
    ("print('answer')", ""),
    ("print('answer')", "1"),
    ("print('x' * 10**6)", ""),
    ("print(1); sys.exit(3)", ""),
]


@pytest.mark.parametrize(("code", "buffering"), ENDS)
def test_a_full_disk_is_a_one_line_error(code, buffering):
    with open("/dev/full", "w") as full:
        result = run(code, full, PYTHONUNBUFFERED=buffering)
    assert result.returncode == 1
    expected = "error: cannot write to standard output: No space left on device\n"
    assert result.stderr == expected


@pytest.mark.parametrize(("code", "buffering"), ENDS[:3])
def test_a_closed_pipe_is_not_an_error(code, buffering):
    reader, writer = os.pipe()
    os.close(reader)
    result = run(code, writer, PYTHONUNBUFFERED=buffering)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


def test_another_error_keeps_its_traceback():
    result = run("print('answer')\nraise BrokenPipeError(32, 'of a worker')", subprocess.PIPE)
    assert result.returncode == 1
    assert result.stdout.strip() == "answer"
    assert "Traceback" in result.stderr and "of a worker" in result.stderr


def test_names_outside_the_encoding_are_escaped():
    code = "print('\\u65e5', os.fsdecode(b'\\xff'))\nsys.exit(3)"
    result = run(code, subprocess.PIPE, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (3, "")
    assert result.stdout == "\\u65e5 \\udcff\n"


def test_an_error_with_control_codes_is_one_harmless_line():
    code = "from tsm_jax.errors import UserError\nraise UserError('a\\x1b[31m\\nb')"
    result = run(code, subprocess.PIPE)
    assert (result.returncode, result.stderr) == (1, "error: a\\x1b[31m b\n")
