"""Runs that are killed, preempted, out of disk space or not finite, and then continued."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_recipe import RECIPE, overrides

from tsm_jax import cli
from tsm_jax.assemble import network as build
from tsm_jax.assemble import train as training_run
from tsm_jax.assemble.train import train_recipe
from tsm_jax.assemble.weights import load_model
from tsm_jax.data.lists import read_video_list
from tsm_jax.data.pipeline import TrainOrder
from tsm_jax.errors import UserError
from tsm_jax.training import metrics as metrics_lib
from tsm_jax.training import steps
from tsm_jax.training.checkpoint import Checkpoints
from tsm_jax.training.checkpoint_files import read_validations
from tsm_jax.training.mesh import make_mesh
from tsm_jax.training.preemption import Preempted, Preemption
from tsm_jax.training.state import Diverged, abstract_state

TIMES = ("batch_seconds", "reader_seconds", "clips_per_second")


def arguments(data, workdir, **changes):
    """With 3 steps per epoch, so that checkpoints fall between log lines."""
    return overrides(data, workdir, **{"log_every": 2, "checkpoint_every": 1, **changes})


def train(data, workdir, preemption=None, **changes):
    config = cli.load_recipe(RECIPE, arguments(data, workdir, **changes))
    mesh = make_mesh(jax.devices()[:1])
    return jax.device_get(train_recipe(config, mesh, preemption))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "work"
    return workdir, train(data, workdir)


def lines(workdir):
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: line[name] for name in line if name not in TIMES} for line in found]


def assert_same_state(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def assert_same_run(workdir, state, undisturbed):
    assert_same_state(state, undisturbed[1])
    assert lines(workdir) == lines(undisturbed[0])
    assert saved(workdir) == saved(undisturbed[0])
    assert not unfinished(workdir)
    assert read_validations(str(workdir / "checkpoints")) == read_validations(
        str(undisturbed[0] / "checkpoints")
    )


def saved(workdir):
    return sorted(int(name) for name in os.listdir(workdir / "checkpoints") if name.isdigit())


def unfinished(workdir):
    return [n for n in os.listdir(workdir / "checkpoints") if "tmp" in n or "deleted" in n]


KILLED_IN_A_SAVE = """
import os, signal, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
from tsm_jax import cli
from tsm_jax.training import checkpoint_files
from tsm_jax.training.mesh import make_mesh
from tsm_jax.assemble.train import train_recipe

write_checksums = checkpoint_files.write_checksums

def killed(directory, step):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    write_checksums(directory, step)

checkpoint_files.write_checksums = killed
train_recipe(cli.load_recipe(sys.argv[2], sys.argv[3:]), make_mesh(jax.devices()[:1]))
"""


def test_killed_during_a_save(data, undisturbed, tmp_path, capsys):
    cache = jax.config.jax_compilation_cache_dir
    process = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_SAVE, cache, RECIPE, *arguments(data, tmp_path)],
        capture_output=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert saved(tmp_path)[-1] == 4
    assert unfinished(tmp_path)
    state = train(data, tmp_path)
    assert f"continuing {tmp_path} at step 4" in capsys.readouterr().out
    assert not unfinished(tmp_path)
    assert_same_run(tmp_path, state, undisturbed)


def send(number, preemption):
    os.kill(os.getpid(), number)
    while not preemption.noted:
        time.sleep(0.001)


def test_preempted_during_a_step_and_during_the_validation(
    data, undisturbed, tmp_path, monkeypatch, capsys
):
    never = {"checkpoint_every": 0}
    with Preemption() as preemption, monkeypatch.context() as patch:
        make_train_step = build.make_train_step

        def make(*args, **kwargs):
            step = make_train_step(*args, **kwargs)

            def preempted_in_the_first(state, batch):
                result = step(state, batch)
                preemption.steps_taken()
                send(signal.SIGTERM, preemption)
                return result

            return preempted_in_the_first

        patch.setattr(build, "make_train_step", make)
        with pytest.raises(Preempted, match="stopped at step 1"):
            train(data, tmp_path, preemption, **never)
    assert saved(tmp_path) == [1]

    with Preemption() as preemption, monkeypatch.context() as patch:
        evaluate = training_run.evaluate

        def preempted(*args, **kwargs):
            send(signal.SIGUSR1, preemption)
            return evaluate(*args, **kwargs)

        patch.setattr(training_run, "evaluate", preempted)
        with pytest.raises(Preempted, match="stopped at step 3"):
            train(data, tmp_path, preemption, **never)
    assert saved(tmp_path) == [1, 3]
    assert [line["step"] for line in lines(tmp_path)] == [2, 3]

    state = train(data, tmp_path, checkpoint_every=1)
    assert "END epoch 1/2" in capsys.readouterr().out
    assert_same_run(tmp_path, state, undisturbed)


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=os.path.getsize)


def test_truncated_and_foreign_checkpoints_are_moved_aside(data, undisturbed, tmp_path, caplog):
    workdir = tmp_path / "work"
    shutil.copytree(undisturbed[0], workdir)
    newest, before = saved(workdir)[-1], saved(workdir)[-2]
    assert (before, newest) == (5, 6)
    torn = largest_file(workdir / "checkpoints" / "6")
    os.truncate(torn, os.path.getsize(torn) // 2)
    for name in ("99", "notes"):
        (workdir / "checkpoints" / name).mkdir()
        (workdir / "checkpoints" / name / "README").write_text("not ours")
    state = train(data, workdir)
    assert sorted(os.listdir(workdir / "unreadable")) == ["6", "99"]
    assert (workdir / "checkpoints" / "notes" / "README").exists()
    assert [record.message.count("is unreadable") for record in caplog.records] == [1, 1]
    assert f"{torn.relative_to(workdir / 'checkpoints' / '6')} has" in caplog.text
    assert_same_run(workdir, state, undisturbed)


def test_a_truncated_checkpoint_is_not_evaluated(undisturbed, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(undisturbed[0], workdir)
    for step in saved(workdir):
        path = largest_file(workdir / "checkpoints" / str(step))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"is unreadable .* has changed"):
        load_model(str(workdir))


# Orbax's background task may still report to the event loop that the failure has closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_last_good_checkpoint_survives_a_full_disk(data, undisturbed, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(undisturbed[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write a checkpoint") as error:
            train(data, workdir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in str(error.value)
    assert not unfinished(workdir)
    assert saved(workdir)[-1] == 5
    assert_same_run(workdir, train(data, workdir), undisturbed)


@pytest.fixture
def bad_batches(data, monkeypatch):
    """The second and fifth training batch have no finite loss; yields the paths of their clips."""
    entries = read_video_list(data / "train.list", prefix=str(data), num_classes=8)
    order = TrainOrder(len(entries), 8, seed=1234)
    batches = [[entries[clip] for clip in order.batch(step)] for step in (1, 4)]
    labels = jnp.array([[entry.label for entry in batch] for batch in batches])
    cross_entropy = metrics_lib.cross_entropy

    def poisoned(logits, batch_labels, *rest):
        bad = (batch_labels == labels).all(1).any()
        return jnp.where(bad, jnp.nan, cross_entropy(logits, batch_labels, *rest))

    monkeypatch.setattr(steps, "cross_entropy", poisoned)
    return [[entry.path for entry in batch] for batch in batches]


def test_steps_that_are_not_finite_are_skipped_until_the_limit(data, bad_batches, tmp_path, capsys):
    with pytest.raises(Diverged, match="step 5 is not finite: loss nan") as error:
        train(data, tmp_path, checkpoint_every=0, max_bad_steps=1)
    assert all(path in str(error.value) for path in bad_batches[1][:4])
    out = capsys.readouterr().out
    assert "step 2 is not finite" in out
    assert "skipped (1 of 1)" in out
    assert "last finite state (step 4): val loss" in out
    reported = {line["kind"]: line for line in lines(tmp_path) if "clips" in line}
    assert reported == {
        "bad_step": {"kind": "bad_step", "step": 2, "bad_steps": 1, "clips": bad_batches[0]},
        "diverged": {"kind": "diverged", "step": 4, "bad_step": 5, "clips": bad_batches[1]},
    }
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path) if line["kind"] == "train")
    checkpoints = Checkpoints(str(tmp_path), read_only=True)
    assert (checkpoints.latest_step(), checkpoints.best_step()) == (4, 3)
    checkpoints.close()


@pytest.mark.slow
def test_a_stopped_run_continues_as_if_the_limit_had_been_higher(data, bad_batches, tmp_path):
    stopped, allowed = tmp_path / "stopped", tmp_path / "allowed"
    for max_bad_steps, step in ((0, 2), (1, 5)):
        with pytest.raises(Diverged, match=f"step {step} is not finite"):
            train(data, stopped, max_bad_steps=max_bad_steps)
    state = train(data, stopped, max_bad_steps=2)
    assert (int(state.step), int(state.bad_steps)) == (6, 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert_same_state(state, train(data, allowed, max_bad_steps=2))
    assert [line for line in lines(stopped) if line["kind"] != "diverged"] == lines(allowed)


def test_a_validation_that_is_not_finite_is_never_the_best(undisturbed, tmp_path):
    workdir = tmp_path / "work"
    shutil.copytree(undisturbed[0], workdir)
    checkpoints = Checkpoints(str(workdir))
    best = checkpoints.best_step()
    checkpoints.add_validation(5, {"loss": float("nan"), "top1": 1.0, "top5": 1.0, "count": 16})
    checkpoints.close()
    again = Checkpoints(str(workdir), read_only=True)
    assert again.best_step() == best
    assert (again.validated(5), again.metrics(5)) == (True, {})
    again.close()


def command(data, workdir):
    return [
        *(sys.executable, "-m", "tsm_jax.train", "--config", RECIPE),
        *arguments(data, workdir, epochs=20, log_every=1),
    ]


@pytest.mark.slow
def test_killed_at_twenty_random_moments(data, tmp_path):
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(command(data, undisturbed), env=environment, check=True)
    rng, kills = random.Random(0), 0
    while kills < 20:
        process = subprocess.Popen(command(data, killed), env=environment)
        # Some of them during the start, most during training, saving and validation.
        written = number_of_lines(killed) + rng.choice([0, 1, 1, 2, 3])
        while process.poll() is None and number_of_lines(killed) < written:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "the run is too short for so many kills"
        kills += 1
    subprocess.run(command(data, killed), env=environment, check=True)
    states = [newest_state(workdir) for workdir in (undisturbed, killed)]
    assert_same_state(*states)
    assert lines(killed) == lines(undisturbed)
    assert saved(killed) == saved(undisturbed)
    assert not (killed / "unreadable").exists()


def number_of_lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def newest_state(workdir):
    checkpoints = Checkpoints(str(workdir), read_only=True)
    step = checkpoints.latest_step()
    assert step == 60
    config = checkpoints.recipe(step)
    network = build.build_training_network(config)
    optimizer = build.build_optimizer(config, lambda _: 0.0)
    like = abstract_state(network, optimizer, make_mesh(jax.devices()[:1]))
    restored = checkpoints.restore(step, like)
    checkpoints.close()
    return restored
