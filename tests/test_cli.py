"""Users' mistakes print one line that says what to do, exit with 1, and show no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tsm_jax import (
    benchmark,
    cli,
    convert,
    evaluate,
    export,
    predict,
    prepare,
    recipes,
    train,
)
from tsm_jax.config import flatten
from tsm_jax.errors import UserError

REPOSITORY = Path(__file__).parents[1]
RECIPE = str(REPOSITORY / "configs" / "quickstart.py")


def recipe_on(train_list, **overrides):
    overrides = {"data.train_list": train_list, "data.render": "", **overrides}
    return ["--config", RECIPE, *(f"--config.{key}={value}" for key, value in overrides.items())]


@pytest.fixture
def write_list(tmp_path):
    def write(text):
        path = tmp_path / "train.list"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no recipe given: `"),
        (["--config", "nope.py"], "no recipe named nope.py: `"),
        (["quikstart"], "no recipe named quikstart: did you mean quickstart?"),
        (["elsewhere/quickstart.py"], "did you mean quickstart?"),
        (["quickstart", "--config", RECIPE], "two recipes given, quickstart and "),
        (["quickstart", "own_videos"], "unknown argument own_videos"),
        (["quickstart", "--epohs=3"], "unknown argument --epohs=3; did you mean --epochs?"),
        (["--lr", "1", "quickstart"], "unknown argument --lr"),
        (["quickstart", "--learning-rate=1"], "did you mean --optimizer.learning_rate?"),
        (["quickstart", "--model.shft=none"], "--model.shft=none: unknown key; did you mean"),
        (["quickstart", "--epochs", "--seed=1"], "write it as --epochs=VALUE"),
        (
            ["--config", RECIPE, "--config.model.shft=none"],
            "unknown key; did you mean --config.model.shift",
        ),
        (["--config", RECIPE, "--config.epochs"], "write it as --config.epochs=VALUE"),
        (["--config", RECIPE, "--config.epochs=many"], "invalid literal for int"),
        (["--config", RECIPE, "--config.model.shift=up"], "must be one of 'past_first'"),
        (recipe_on("/nowhere/train.list"), "/nowhere/train.list"),
    ],
)
def test_train_names_the_argument(arguments, message, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(UserError) as error:
        train.main(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["quickstart", "--epochs", "7", "--model.shift=none", "--label-smoothing=0.25"],
        ["--epochs=7", "--config.model.shift", "none", "--label_smoothing", "0.25", "quickstart"],
        ["--config", RECIPE, "--config.epochs=7", "--model.shift=none", "--label-smoothing=0.25"],
    ],
)
def test_all_spellings_of_a_key_are_equivalent(arguments):
    parser = cli.Parser("train", description="", example="")
    parser.add_recipe(required=True)
    _, config = parser.parse_with_recipe(arguments)
    changed = {"epochs": 7, "model.shift": "none", "label_smoothing": 0.25}
    expected = {**dict(flatten(cli.load_recipe(RECIPE))), **changed}
    assert dict(flatten(config)) == {**expected, "workdir": "output/quickstart,shift=none"}


def test_own_options_of_a_verb_come_before_keys_and_values_keep_their_hyphens():
    parser = cli.Parser("verb", description="", example="")
    parser.add_recipe(required=False)
    parser.add_argument("--seed")
    parser.add_argument("--two_words")
    options, config = parser.parse_with_recipe(["--seed", "3", "--two-words=a-b", "quickstart"])
    assert (options.seed, options.two_words) == ("3", "a-b")
    assert config is not None
    assert config.seed == cli.load_recipe(RECIPE).seed


def test_recipes_lists_each_recipe_with_a_summary(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    recipes.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == cli.recipe_names()
    assert all(len(line.split()) > 3 for line in lines)


def test_a_printed_recipe_can_be_edited_and_trained(capsys, tmp_path):
    recipes.main(["quickstart"])
    printed = capsys.readouterr().out
    (tmp_path / "my.py").write_text(printed.replace("config.epochs = 4", "config.epochs = 9"))
    config = cli.load_recipe(str(tmp_path / "my.py"))
    assert (config.epochs, config.workdir) == (9, "output/my")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("def get_config(:", "SyntaxError: invalid syntax .*line 1"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError: division by zero"),
        ("def get_config():\n    return 1", "must return tsm_jax.config.default()"),
        (
            "from ml_collections import ConfigDict\ndef get_config():\n"
            "    return ConfigDict({'seed': 1})",
            "must return tsm_jax.config.default()",
        ),
        (
            "from tsm_jax.config import default\ndef get_config():\n"
            "    config = default()\n    config.seed = None\n    return config",
            "config.seed is None: it must be of type int",
        ),
    ],
)
def test_an_invalid_recipe_is_a_one_line_error(tmp_path, program, message):
    path = tmp_path / "recipe.py"
    path.write_text(program)
    with pytest.raises(UserError, match=message):
        cli.load_recipe(str(path))


def test_a_recipe_must_be_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    for path in (str(tmp_path / "pipe.py"), "/dev/zero"):
        with pytest.raises(UserError, match="not a regular file"):
            cli.load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 0\nb.mp4\n", "line 2"),
        ("a.mp4 0\nb.mp4 8\n", "config.model.num_classes"),
        ("a.mp4 zero\n", "not an integer"),
        ("", "is empty"),
        ("a.mp4 0\n", "do not fill one batch of 16"),
    ],
)
def test_train_names_the_line_of_a_list(write_list, text, message):
    path = write_list(text)
    with pytest.raises(UserError) as error:
        train.main(recipe_on(path, **{"data.val_list": path}))
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (evaluate.main, [], "nothing to evaluate"),
        (evaluate.main, ["--weights", "/nowhere"], "there are no weights at /nowhere"),
        (evaluate.main, ["--weights", "tests"], "tests is neither a model directory"),
        (predict.main, ["--model", "/nowhere", "--input", "x"], "no weights at /nowhere"),
        (evaluate.main, ["--epochs=5"], "--epochs=5 requires a recipe"),
        (predict.main, ["--model", "m"], "required: --input"),
        (predict.main, ["--modle", "m"], "unknown argument --modle; did you mean --model?"),
        (prepare.main, ["lists", "folders", "--vidoes=v"], "did you mean --videos?"),
        (export.main, ["--weihgts=w"], "did you mean --weights?"),
        (convert.main, ["--inptu", "m"], "did you mean --input?"),
        (benchmark.main, ["data", "--clip", "3"], "did you mean --clips?"),
        (recipes.main, ["--hlep"], "did you mean --help?"),
        (predict.main, ["--model", "m", "--input", "x", "--top_k", "0"], "--top_k is 0"),
    ],
)
def test_evaluate_and_predict_name_the_argument(command, arguments, message, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(UserError) as error:
        command(arguments)
    assert message in str(error.value)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def test_a_mistake_prints_one_line_and_exits_with_1():
    result = run("tsm_jax.train", "--config", RECIPE, "--config.modle.depth=50")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: --config.modle.depth=50")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [train, evaluate, predict, export], ids=lambda m: m.__name__)
def test_help_has_an_example(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [command.__file__])  # as with python -m
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    assert end.value.code == 0
    assert f"\n  python -m {command.__name__} " in capsys.readouterr().out


def test_reading_clips_and_parsing_arguments_need_no_jax():
    """Mistakes are reported at once. (The pipeline itself imports grain, which imports jax.)"""
    code = "import sys, tsm_jax.train, tsm_jax.data.sources; print('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "False\n", result.stderr


def test_overridden_model_keys_are_part_of_the_default_workdir():
    config = cli.load_recipe(RECIPE, ["--config.model.shift=none", "--config.seed=1"])
    assert config.workdir == "output/quickstart,shift=none"
    config = cli.load_recipe(RECIPE, ["--config.workdir=/tmp/x", "--config.model.shift=none"])
    assert config.workdir == "/tmp/x"
