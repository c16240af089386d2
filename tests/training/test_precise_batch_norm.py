"""Statistics of batch norm from whole batches, in place of the running ones."""

from __future__ import annotations

import json
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from small_recipe import RECIPE, overrides

from tsm_jax import cli
from tsm_jax.assemble import network as build
from tsm_jax.assemble.data import build_source, build_train_clips
from tsm_jax.assemble.network import build_training_network
from tsm_jax.assemble.train import train_recipe
from tsm_jax.config import Plan, default
from tsm_jax.data import moving_shapes
from tsm_jax.data.pipeline import Reading, TrainOrder, train_batches
from tsm_jax.errors import UserError
from tsm_jax.models.normalize import normalize
from tsm_jax.training.checkpoint import Checkpoints
from tsm_jax.training.loop import _is_precise, _with_precise_statistics
from tsm_jax.training.mesh import make_mesh, put_batch
from tsm_jax.training.preemption import Preempted, Preemption
from tsm_jax.training.state import TrainState
from tsm_jax.training.steps import make_statistics_step

STEPS = 3  # of an epoch
TIMES = ("batch_seconds", "reader_seconds", "clips_per_second")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data") / "shapes"
    moving_shapes.render(directory, train_videos=24, val_videos=16, seed=0)
    return directory


def recipe(data, workdir, **changes):
    changes = {"precise_batch_norm": 2, "epochs": 3, "log_every": 2, "model.dropout": 0, **changes}
    return cli.load_recipe(RECIPE, overrides(data, workdir, **changes))


def train(config, preemption=None):
    return jax.device_get(train_recipe(config, make_mesh(jax.devices()[:1]), preemption))


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "work"
    config = recipe(data, workdir)
    return config, workdir, train(config)


def batches(config, first_step, count=STEPS):
    source = build_source(config.data, "train", config.model.num_classes)
    order = TrainOrder(len(source), config.batch_size, config.seed)
    return list(
        train_batches(
            build_train_clips(config, source),
            order,
            batch_size=config.batch_size,
            steps=range(first_step, first_step + count),
            reading=Reading(1),
        )
    )


def stem(video, kernel):
    """Sums of products of a 3x3 convolution of stride 2, with one pixel around: float64."""
    images = np.asarray(normalize(video[:, 0]), np.float64).reshape(-1, *video.shape[3:])
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = images.shape[1:3]
    return sum(
        padded[:, y : y + height : 2, x : x + width : 2] @ kernel[y, x].astype(np.float64)
        for y in range(3)
        for x in range(3)
    )


def test_they_are_means_over_the_batches_to_come(run):
    """The first layer's in the last checkpoint, computed again with NumPy from the same clips."""
    config, workdir, state = run
    kernel = state.params["backbone.stem.conv.kernel"]
    with closing(Checkpoints(str(workdir), read_only=True)) as checkpoints:
        network, mesh = build_training_network(config), make_mesh(jax.devices()[:1])
        _, saved = checkpoints.restore_model(int(state.step), network, mesh)
    outputs = [stem(batch["video"], kernel) for batch in batches(config, int(state.step))]
    for name, expected in (
        ("mean", np.mean([y.mean((0, 1, 2)) for y in outputs], 0)),
        ("var", np.mean([y.var((0, 1, 2)) for y in outputs], 0)),
    ):
        for found in (state.batch_stats, saved):
            found = found[f"backbone.stem.norm.{name}"]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def statistics(run, step, *, devices=1, parts=1, mixup=0.0):
    """Those of the run's first batch."""
    config, _, state = run
    mesh = make_mesh(jax.devices()[:devices])
    compute = make_statistics_step(
        build_training_network(config), mesh=mesh, seed=1, mixup=mixup, accumulation_steps=parts
    )
    (batch,) = batches(config, 0, 1)
    return jax.device_get(compute(state.params, np.int32(step), put_batch(batch, mesh)))


def test_with_those_of_one_batch_evaluation_answers_as_training_does(run):
    """Every layer's: each one has to be that of its batch for the logits to agree."""
    config, _, state = run
    network, ours = build_training_network(config), statistics(run, 0)
    video = normalize(batches(config, 0, 1)[0]["video"][:, 0])
    apply = jax.jit(network.apply, static_argnames="train")
    expected = apply(state.params, state.batch_stats, video, train=True)[0]
    errors = [
        abs(apply(state.params, stats, video)[0] - expected).max() / abs(expected).max()
        for stats in (ours, state.batch_stats)
    ]
    assert errors[0] < 1e-4 < 1e-2 < errors[1]


def test_in_parts_on_devices_they_are_the_same(run, data, tmp_path):
    config = recipe(data, tmp_path, **{"model.batch_norm_group": 2})
    run = (config, *run[1:])
    found = statistics(run, 5, mixup=0.3)
    for name, other in statistics(run, 5, mixup=0.3, devices=2, parts=2).items():
        np.testing.assert_allclose(other, found[name], rtol=1e-4, atol=1e-5)
    name = "backbone.stem.norm.var"  # of clips that are mixed by what the step draws
    assert found[name].sum() < 0.99 * statistics(run, 5)[name].sum()


@pytest.mark.parametrize(
    ("every", "epochs"),
    [(0, []), (1, [1, 2, 3, 4, 5]), (2, [1, 3, 5]), (3, [1, 4, 5]), (9, [1, 5])],
)
def test_the_first_of_so_many_epochs_and_the_last(every, epochs):
    config = default()
    config.epochs, config.precise_batch_norm = 5, every
    plan = Plan(steps_per_epoch=4, total_steps=20, boundaries=(), warmup_steps=0)
    parts: Any = SimpleNamespace(config=config, plan=plan)
    assert [step for step in range(1, 21) if _is_precise(parts, step)] == [4 * e for e in epochs]


def test_asked_to_stop_in_between_it_goes_on_as_if_nothing_had_been(
    run, data, tmp_path, monkeypatch
):
    _, workdir, expected = run
    preemption, make = Preemption(), build.make_statistics_step

    def make_and_stop(*args, **kwargs):
        step = make(*args, **kwargs)

        def stopped_in_the_first(*args):
            preemption.noted = True
            return step(*args)

        return stopped_in_the_first

    with monkeypatch.context() as patch:
        patch.setattr(build, "make_statistics_step", make_and_stop)
        with pytest.raises(Preempted, match="stopped at step 3 .* from the last checkpoint"):
            train(recipe(data, tmp_path, checkpoint_every=2), preemption)
    state = train(recipe(data, tmp_path))
    for found, right in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(found, right)
    kept = [{k: v for k, v in line.items() if k not in TIMES} for line in lines(tmp_path)]
    assert kept == [{k: v for k, v in line.items() if k not in TIMES} for line in lines(workdir)]


def test_those_that_are_not_finite_are_not_taken():
    config, said = default(), []
    config.precise_batch_norm = 1
    state = TrainState(*(np.float32(0),) * 2, {"mean": np.ones(2)}, (), np.int32(0))
    broken = state._replace(batch_stats={"mean": np.array([1, np.inf])})
    parts: Any = SimpleNamespace(
        config=config,
        plan=Plan(steps_per_epoch=1, total_steps=1, boundaries=(), warmup_steps=0),
        compute_statistics=lambda *_: broken,
        log=SimpleNamespace(say=said.append),
    )
    assert _with_precise_statistics(parts, state, 1, False, lambda: False) is state
    assert "not finite; the running statistics are kept" in said[0]


def test_frozen_layers_have_none(data, tmp_path):
    with pytest.raises(UserError, match="frozen_batch_norm=all: frozen layers keep"):
        recipe(data, tmp_path, **{"model.frozen_batch_norm": "all"})
