"""A run on 1 x 1, 1 x 4 and 2 x 2 (processes x devices): equal steps, exchangeable checkpoints."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small_recipe import RECIPE, overrides

from tsm_jax import cli
from tsm_jax.assemble.network import build_optimizer, build_training_network
from tsm_jax.assemble.train import train_recipe
from tsm_jax.data import moving_shapes
from tsm_jax.training.checkpoint import Checkpoints
from tsm_jax.training.mesh import make_mesh
from tsm_jax.training.preemption import EXIT_CODE
from tsm_jax.training.state import abstract_state

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "shapes"
    moving_shapes.render(directory, train_videos=12, val_videos=16, seed=0)
    lines = (directory / "val.list").read_text().splitlines(keepends=True)
    (directory / "val.list").write_text("".join(lines[:13]))  # divides by nothing
    return directory


@pytest.fixture(scope="module")
def arguments(data):
    def for_run(workdir, epochs):
        changes = {
            "model.batch_norm_group": 2,
            "batch_size": 8,  # of 12 clips: each step is an epoch of its own, with other clips
            "eval_batch_size": 6,
            "log_every": 1,
            "optimizer.schedule": "step",  # does not depend on how many epochs follow
            "optimizer.learning_rate": 0.02,
            "optimizer.warmup_epochs": 0.0,
        }
        return overrides(data, workdir, epochs=epochs, **changes)

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
    """The workdirs of one device after one and after two epochs."""
    folder = tmp_path_factory.mktemp("one")
    run_here(folder / "2", devices=1, epochs=2)
    shutil.copytree(folder / "2", folder / "1")
    shutil.rmtree(folder / "1" / "checkpoints" / "2")
    return folder / "1", folder / "2"


def state(workdir, step):
    """Returns parameters, statistics and velocities of a checkpoint of any layout."""
    checkpoints = Checkpoints(str(workdir), read_only=True)
    config = checkpoints.recipe(step)
    network = build_training_network(config)
    optimizer = build_optimizer(config, lambda _: 0.0)
    like = abstract_state(network, optimizer, make_mesh(jax.devices()[:1]))
    restored, _ = checkpoints.restore(step, like)
    checkpoints.close()
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
    }


def assert_same_step(workdir, expected, step):
    """Compares one step from the same state on two layouts, including its validation.

    Only single steps can be compared: over several, a float32 network amplifies rounding errors.
    """
    for kind in ("train", "val"):
        ours, theirs = curve(workdir, kind)[step], curve(expected, kind)[step]
        np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-5)
        assert ours["top1"] == theirs["top1"]
    np.testing.assert_allclose(
        curve(workdir)[step]["grad_norm"], curve(expected)[step]["grad_norm"], rtol=1e-4
    )
    assert curve(workdir, "val")[step]["count"] == 13
    ours, theirs = state(workdir, step), state(expected, step)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        largest = np.abs(array).max()
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=1e-4 * largest, err_msg=name)


def test_a_run_can_move_between_layouts(on_one_device, run_here, launch, tmp_path):
    after_one, after_two = on_one_device

    four = tmp_path / "four"
    shutil.copytree(after_one, four)
    run_here(four, devices=4, epochs=2)
    assert_same_step(four, after_two, 2)

    two_by_two = tmp_path / "two_by_two"
    shutil.copytree(after_one, two_by_two)
    process = launch(two_by_two, epochs=2)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "on 4 x cpu" in output
    assert f"continuing {two_by_two} at step 1" in output
    assert "[1] epoch" not in output  # only the first process logs
    assert_same_step(two_by_two, after_two, 2)  # which one device reads
    assert curve(two_by_two).keys() == {1, 2}


@pytest.mark.slow
def test_two_preempted_processes_save_the_same_step_and_continue(launch, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    process = launch(undisturbed, epochs=9)
    output, _ = process.communicate()
    assert process.returncode == 0, output

    workdir = tmp_path / "work"
    process = launch(workdir, epochs=9)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "epoch 2/9" in line:
            process.send_signal(signal.SIGTERM)
            break
    output = "".join(lines) + process.communicate()[0]
    assert process.returncode == EXIT_CODE, output
    stopped = [line for line in output.splitlines() if "stopped at step" in line]
    assert {line[:3] for line in stopped} == {"[0]", "[1]"}
    assert len({line[3:] for line in stopped}) == 1
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    saved = max(int(name) for name in names if name.isdigit())
    assert f"stopped at step {saved} " in stopped[0]
    assert saved < 9

    process = launch(workdir, epochs=9)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert f"at step {saved}" in output
    for kind in ("train", "val"):  # the same layout: the same bits
        ours, theirs = curve(workdir, kind), curve(undisturbed, kind)
        assert {step: line["loss"] for step, line in ours.items()} == {
            step: line["loss"] for step, line in theirs.items()
        }
