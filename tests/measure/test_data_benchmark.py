"""The data benchmark: JSON lines that are consistent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tsm_jax import benchmark
from tsm_jax.errors import UserError
from tsm_jax.host import usable_cores

REPOSITORY = Path(__file__).parents[2]
RECIPE = str(REPOSITORY / "configs" / "quickstart.py")


@pytest.fixture(scope="module")
def arguments(data):
    values = {"data.render": "", "data.train_list": data / "train.list", "data.prefix": data}
    return ["--config", RECIPE, *(f"--config.{key}={value}" for key, value in values.items())]


def test_a_line_of_json_for_each_measurement(arguments, capsys):
    benchmark.main(["data", *arguments, "--clips", "20", "--threads", "1", "2", "--workers", "0"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    measures = ["decode", "decode and transform", "pipeline", "pipeline"]
    assert [line["measure"] for line in lines] == measures
    assert [line.get("threads") for line in lines] == [None, None, 1, 2]
    assert [line["clips"] for line in lines] == [20, 20, 32, 32]  # whole batches of 16
    for line in lines:
        assert line["source"] == "videos"
        assert line["ms_per_clip"] == pytest.approx(1000 / line["clips_per_second"], rel=0.01)


def test_renders_the_data_set_of_a_recipe_on_first_use(tmp_path, capsys):
    values = {"data.train_list": tmp_path / "new" / "train.list", "data.rendered_clips": "(16, 8)"}
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    benchmark.main(["data", "--config", RECIPE, *overrides, "--clips", "1"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["threads"] == usable_cores()


def test_errors_name_what_is_wrong(arguments, tmp_path):
    short = tmp_path / "short.list"
    short.write_text("a.mp4 0\n")
    with pytest.raises(UserError, match="use a list of at least 16"):
        benchmark.main(["data", *arguments, f"--config.data.train_list={short}"])
    with pytest.raises(UserError, match="--clips must be at least 1"):
        benchmark.main(["data", *arguments, "--clips", "0"])
    with pytest.raises(UserError, match="invalid choice: 'speed'"):
        benchmark.main(["speed"])


def test_help_has_an_example(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [benchmark.__file__])  # as with python -m
    with pytest.raises(SystemExit):
        benchmark.main(["data", "--help"])
    assert "\n  python -m tsm_jax.benchmark data tsm_k400_packed --" in capsys.readouterr().out
