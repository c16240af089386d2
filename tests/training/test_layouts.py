"""A run on 1 x 1, 1 x 4 and 2 x 2 (processes x devices): equal losses, checkpoints that fit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tsm_jax import cli
from tsm_jax.data import moving_shapes
from tsm_jax.training.mesh import make_mesh
from tsm_jax.training.preemption import EXIT_CODE
from tsm_jax.training_run import train_recipe

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "configs" / "quickstart.py")
STEPS = 3  # in an epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "shapes"
    moving_shapes.render(directory, train_videos=24, val_videos=16, seed=0)
    lines = (directory / "val.list").read_text().splitlines(keepends=True)
    (directory / "val.list").write_text("".join(lines[:13]))  # divides by nothing
    return directory


@pytest.fixture(scope="module")
def arguments(data):
    def for_run(workdir, epochs):
        values = {
            "data.render": "",
            "data.train_list": data / "train.list",
            "data.val_list": data / "val.list",
            "data.prefix": data,
            "data.crop_size": 32,
            "data.short_side": 32,
            "model.width": 8,
            "model.num_segments": 4,
            "model.dropout": 0.5,
            "model.batch_norm_group": 2,
            "batch_size": 8,
            "eval_batch_size": 6,
            "epochs": epochs,
            "log_every": 1,
            "optimizer.schedule": "step",  # does not depend on how many epochs follow
            # At 0.01 this network's losses move by 5e-3 in nine steps when its first weights move
            # by 1e-7: too much to tell rounding from a mistake. At 0.002 they move by 3e-6.
            "optimizer.learning_rate": 0.002,
            "optimizer.warmup_epochs": 0.0,
            "workdir": workdir,
        }
        return [f"--config.{key}={value}" for key, value in values.items()]

    return for_run


@pytest.fixture(scope="module")
def run_here(arguments):
    def run(workdir, *, devices, epochs):
        mesh = make_mesh(jax.devices()[:devices])
        train_recipe(cli.load_recipe(RECIPE, arguments(workdir, epochs)), mesh)

    return run


@pytest.fixture(scope="module")
def launch(arguments):
    """Starts two processes with two devices each, in one command."""

    def start(workdir, *, epochs):
        command = [sys.executable, ROOT / "launch" / "local.py", "--processes=2", "--devices=2"]
        command += ["--", "--config", RECIPE, *arguments(workdir, epochs)]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def curve(workdir, kind="train"):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["kind"] == kind}


@pytest.fixture(scope="module")
def on_one_device(run_here, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "work"
    run_here(workdir, devices=1, epochs=3)
    return workdir


def assert_same(workdir, expected, steps, validations):
    for kind, wanted in (("train", steps), ("val", validations)):
        ours, theirs = curve(workdir, kind), curve(expected, kind)
        assert set(wanted) <= set(ours)
        for step in wanted:
            np.testing.assert_allclose(ours[step]["loss"], theirs[step]["loss"], rtol=1e-5)
            assert ours[step]["top1"] == theirs[step]["top1"]
            assert ours[step].get("count") == theirs[step].get("count")
    assert {line["count"] for line in curve(workdir, "val").values()} == {13}


def test_a_run_moves_between_layouts_without_a_trace(on_one_device, run_here, launch, tmp_path):
    workdir = tmp_path / "work"
    run_here(workdir, devices=4, epochs=1)
    assert_same(workdir, on_one_device, range(1, 4), [3])

    process = launch(workdir, epochs=2)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "on 4 x cpu" in output
    assert f"continuing {workdir} at step 3" in output
    assert "[1] epoch" not in output  # the first process alone tells what happens
    assert_same(workdir, on_one_device, range(4, 7), [6])

    run_here(workdir, devices=4, epochs=3)
    assert_same(workdir, on_one_device, range(7, 10), [9])


@pytest.mark.slow
def test_two_processes_told_to_stop_save_one_step_and_continue(on_one_device, launch, tmp_path):
    workdir = tmp_path / "work"
    process = launch(workdir, epochs=3)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "step 2/3" in line:
            process.send_signal(signal.SIGTERM)
            break
    output = "".join(lines) + process.communicate(timeout=600)[0]
    assert process.returncode == EXIT_CODE, output
    stopped = [line for line in output.splitlines() if "stopped at step" in line]
    assert {line[:3] for line in stopped} == {"[0]", "[1]"}
    assert len({line[3:] for line in stopped}) == 1
    saved = max(int(folder.name) for folder in (workdir / "checkpoints").iterdir())
    assert f"stopped at step {saved} " in stopped[0]
    assert saved < 3 * STEPS

    process = launch(workdir, epochs=3)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert f"at step {saved}" in output
    assert_same(workdir, on_one_device, range(1, 10), [3, 6, 9])
