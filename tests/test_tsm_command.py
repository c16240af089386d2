"""The `tsm` command lists and runs the verbs of the package quickly."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from tsm_jax import cli
from tsm_jax.__main__ import VERBS, main

REPOSITORY = Path(__file__).parents[1]


def tsm(*words, program="tsm"):
    """Runs the entry point of the `tsm` script in this process, or `python -m PROGRAM`."""
    if program == "tsm":
        return tsm_here(words)
    return subprocess.run(
        [sys.executable, "-m", program, *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def tsm_here(words):
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        patch.setattr(sys, "argv", ["/usr/bin/tsm", *words])
        patch.setattr(cli, "enable_compilation_cache", lambda: None)  # keeps the cache of the tests
        with pytest.raises(SystemExit) as end:
            main()
    code = end.value.code or 0
    return subprocess.CompletedProcess(words, code, stdout.getvalue(), stderr.getvalue())


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_verb(words):
    result = tsm(*words)
    assert result.returncode == 0
    verbs = result.stdout.partition("verbs:\n")[2].partition("\n\n")[0]
    lines = [line.split() for line in verbs.splitlines() if not line.startswith("    ")]
    assert [line[0] for line in lines] == list(VERBS)
    assert all(len(line) > 3 for line in lines)


def test_every_command_module_is_a_verb():
    commands = {
        path.stem
        for path in (REPOSITORY / "tsm_jax").glob("*.py")
        if 'if __name__ == "__main__":\n    cli.run(main)' in path.read_text()
    }
    assert set(VERBS) == commands


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_shows_its_own_help(verb):
    result = tsm(verb, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: tsm {verb} ")
    assert f"\n  tsm {verb} " in result.stdout  # the example
    assert "python -m" not in result.stdout


def test_help_imports_nothing_slow():
    code = (
        "import sys; sys.argv = ['tsm', '--help']\n"
        "from tsm_jax.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({m.split('.')[0] for m in sys.modules}"
        " - set(sys.stdlib_module_names)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = set(ast.literal_eval(result.stdout.splitlines()[-1]))
    heavy = {"jax", "numpy", "absl", "ml_collections", "flax", "grain", "cv2", "rich"}
    assert "tsm_jax" in loaded
    assert not loaded & heavy


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trian", "error: unknown verb trian: did you mean `tsm train`?\n"),
        ("frobnicate", "error: unknown verb frobnicate: the verbs are prepare, recipes,"),
        ("--config", "error: unknown verb --config: the verbs are"),
    ],
)
def test_an_unknown_verb_is_a_one_line_error(word, message):
    result = tsm(word)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_errors_of_a_verb_quote_the_command_as_typed():
    for program, typed in (("tsm", "tsm train"), ("tsm_jax", "python -m tsm_jax train")):
        result = tsm("train", program=program)
        assert result.returncode == 1
        assert result.stderr == (
            f"error: no recipe given: `{typed.removesuffix('train')}recipes` lists them"
            f" (see {typed} --help)\n"
        )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tsm pred", {"predict"}),
        ("tsm train quick", {"quickstart", "quickstart_live"}),
        ("tsm train quickstart --model.sh", {"shift", "shift_fraction", "shift_every"}),
        ("tsm prepare lists --val", {"--val_share"}),
        ("tsm prepare che", {"check"}),
        ("tsm recipe quick", {"quickstart", "quickstart_live"}),
    ],
)
def test_shell_completion(line, expected, tmp_path, monkeypatch):
    answer = tmp_path / "answer"
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setenv("_ARGCOMPLETE_STDOUT_FILENAME", str(answer))
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    tsm(program="tsm_jax")  # a process, because completion exits
    words = {word.strip() for word in answer.read_text().split("\v")}
    assert {word.removeprefix("--model.") for word in words} == expected


def test_help_is_wrapped_to_the_terminal_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for words in ([], ["prepare", "lists", "--help"]):
        result = tsm(*words)
        commands = ("  tsm ", "  eval ")
        lines = [line for line in result.stdout.splitlines() if not line.startswith(commands)]
        assert max(map(len, lines)) <= 60
