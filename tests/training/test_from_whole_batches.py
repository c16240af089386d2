"""Batch-norm statistics and the classifier, computed from whole batches instead of by training."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from small_recipe import RECIPE, overrides

from tsm_jax import cli
from tsm_jax.assemble import network as build
from tsm_jax.assemble import whole_batches as assemble_whole_batches
from tsm_jax.assemble.data import build_source, build_train_clips, read_train_batches
from tsm_jax.assemble.network import build_training_network, preprocessing_of
from tsm_jax.assemble.train import train_recipe
from tsm_jax.config import Plan, default
from tsm_jax.data.pipeline import Reading, eval_batches
from tsm_jax.data.protocols import protocol_of
from tsm_jax.data.sources import EvalClips
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.models.architecture import CLASSIFIER, CLASSIFIER_BIAS
from tsm_jax.models.network import normalize
from tsm_jax.training.checkpoint import Checkpoints
from tsm_jax.training.loop import _ends_precise_epoch, _finish_epoch
from tsm_jax.training.mesh import make_mesh, put_batch
from tsm_jax.training.preemption import Preempted, Preemption
from tsm_jax.training.state import TrainState
from tsm_jax.training.whole_batches import (
    Moments,
    fit_classifier,
    make_moments_step,
    make_statistics_step,
)

STEPS = 3  # of an epoch
STRENGTH = 0.1
TIMES = ("batch_seconds", "reader_seconds", "clips_per_second")


def recipe(data, workdir, **changes):
    of_the_test = {"precise_batch_norm": 2, "refit_classifier": STRENGTH, "epochs": 3}
    of_the_test |= {"log_every": 2, "model.dropout": 0}
    return cli.load_recipe(RECIPE, overrides(data, workdir, **{**of_the_test, **changes}))


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
    clips = build_train_clips(config, source)
    return list(read_train_batches(config, clips, range(first_step, first_step + count)))


def stem(video, kernel):
    """Computes a 3x3 convolution with stride 2 and one pixel of padding, in float64."""
    images = np.asarray(normalize(video[:, 0]), np.float64).reshape(-1, *video.shape[3:])
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = images.shape[1:3]
    return sum(
        padded[:, y : y + height : 2, x : x + width : 2] @ kernel[y, x].astype(np.float64)
        for y in range(3)
        for x in range(3)
    )


def test_statistics_are_means_over_the_next_batches(run):
    """Those of the first layer in the last checkpoint are recomputed with NumPy from the clips."""
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
    """Returns the statistics of the run's first batch."""
    config, _, state = run
    mesh = make_mesh(jax.devices()[:devices])
    compute = make_statistics_step(
        build_training_network(config), mesh=mesh, seed=1, mixup=mixup, accumulation_steps=parts
    )
    (batch,) = batches(config, 0, 1)
    return jax.device_get(compute(state.params, np.int32(step), put_batch(batch, mesh)))


def test_with_the_statistics_of_a_batch_evaluation_equals_training(run):
    """The logits agree only if the statistics of every layer are those of the batch."""
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


def test_statistics_are_the_same_in_parts_and_on_devices(run, data, tmp_path):
    config = recipe(data, tmp_path, **{"model.batch_norm_group": 2})
    run = (config, *run[1:])
    found = statistics(run, 5, mixup=0.3)
    for name, other in statistics(run, 5, mixup=0.3, devices=2, parts=2).items():
        np.testing.assert_allclose(other, found[name], rtol=1e-4, atol=1e-5)
    name = "backbone.stem.norm.var"  # of clips that are mixed by what the step draws
    assert found[name].sum() < 0.99 * statistics(run, 5)[name].sum()


def plain_batches(config):
    """Returns batches of the training clips without augmentation."""
    source = build_source(config.data, "train", config.model.num_classes)
    clips = EvalClips(source, 4, protocol_of(preprocessing_of(config.data)))
    return list(eval_batches(clips, batch_size=config.batch_size, reading=Reading(1)))


def moments(run, *, devices=1):
    config, _, state = run
    mesh = make_mesh(jax.devices()[:devices])
    step = make_moments_step(build_training_network(config), np.ones(8), mesh=mesh)
    found = [
        step(state.params, state.batch_stats, put_batch(batch, mesh))
        for batch in plain_batches(config)
    ]
    return Moments(*(np.sum(part, 0, np.float64) for part in zip(*found, strict=True)))


def test_the_classifier_is_fitted_to_clips_without_augmentation(run):
    """It is recomputed by least squares from the features of each clip instead of their moments."""
    config, _, state = run
    network = build_training_network(config)
    shown = plain_batches(config)
    labels = np.concatenate([batch["label"] for batch in shown])
    features = np.concatenate(
        [
            np.asarray(
                network.module(state.params, state.batch_stats).features(
                    normalize(batch["video"][:, 0])
                )
            )
            for batch in shown
        ]
    )
    features = features.reshape(len(labels), -1, features.shape[-1]).mean(1).astype(np.float64)
    weight = np.array([1 / (labels == label).sum() for label in labels])
    weight /= weight.sum()
    targets = np.eye(8)[labels]
    x, y = features - weight @ features, targets - weight @ targets
    variance = (weight[:, None] * x**2).sum()
    penalty = np.sqrt(STRENGTH * variance / len(labels)) * np.eye(x.shape[1])
    root = np.sqrt(weight)[:, None]
    slopes = np.linalg.lstsq(
        np.vstack([root * x, penalty]), np.vstack([root * y, 0 * penalty[:, :8]]), rcond=None
    )[0]
    slopes -= slopes.mean(1, keepdims=True)
    found = state.params[CLASSIFIER].astype(np.float64)
    scale = np.vdot(found, slopes) / np.vdot(slopes, slopes)
    assert scale > 0
    assert abs(found - scale * slopes).max() < 1e-3 * abs(found).max()
    scores = features @ found + state.params[CLASSIFIER_BIAS]
    expected = scale * (targets - y + x @ slopes)  # shares of classes, and what differs from them
    expected -= expected.mean(1, keepdims=True)
    np.testing.assert_allclose(scores, expected, atol=1e-3 * abs(expected).max())


def test_moments_are_the_same_on_devices(run):
    for found, other in zip(moments(run), moments(run, devices=2), strict=True):
        np.testing.assert_allclose(other, found, rtol=1e-4, atol=1e-5)


def test_scores_spread_as_much_as_before():
    rng = np.random.default_rng(0)
    clips = np.hstack([rng.normal(size=(40, 5)) + 1, np.ones((40, 1))])
    targets = np.eye(3)[rng.integers(3, size=40)]
    kernel, bias = rng.normal(size=(5, 3)), rng.normal(size=3)
    sums = Moments(clips.T @ clips, targets.T @ clips)
    fitted = np.vstack(fit_classifier(sums, 40, 0.1, kernel, bias))
    spreads = [
        np.square(scores - scores.mean(1, keepdims=True)).mean()
        for scores in (clips @ fitted, clips @ np.vstack([kernel, bias]))
    ]
    assert spreads[0] == pytest.approx(spreads[1], rel=1e-5)


def test_identical_features_leave_the_classifier_unchanged():
    clips, targets = np.ones((8, 4)), np.eye(2)[np.arange(8) % 2]
    sums = Moments(clips.T @ clips, targets.T @ clips)
    assert not np.isfinite(fit_classifier(sums, 8, 0.1, np.ones((3, 2)), np.ones(2))[0]).all()


@pytest.mark.parametrize(
    ("every", "epochs"),
    [(1, [1, 2, 3, 4, 5]), (2, [1, 3, 5]), (3, [1, 4, 5]), (9, [1, 5])],
)
def test_every_nth_epoch_from_the_first_and_the_last_are_precise(every, epochs):
    config = default()
    config.epochs, config.precise_batch_norm = 5, every
    plan = Plan(steps_per_epoch=4, total_steps=20, boundaries=(), warmup_steps=0)
    parts: Any = SimpleNamespace(config=config, plan=plan)
    ends = [step for step in range(1, 21) if _ends_precise_epoch(parts, step)]
    assert ends == [4 * epoch for epoch in epochs]


def test_a_run_stopped_during_the_computation_continues_unchanged(run, data, tmp_path, monkeypatch):
    _, workdir, expected = run
    module = assemble_whole_batches
    for name, at_step in (("make_statistics_step", 3), ("make_moments_step", 9)):
        preemption = Preemption()
        with monkeypatch.context() as patch:
            patch.setattr(module, name, _stopped_in_the_first(getattr(module, name), preemption))
            with pytest.raises(Preempted, match=f"step {at_step} .* since the last checkpoint"):
                train(recipe(data, tmp_path, checkpoint_every=2), preemption)
    state = train(recipe(data, tmp_path))
    for found, right in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(found, right)
    kept = [{k: v for k, v in line.items() if k not in TIMES} for line in lines(tmp_path)]
    assert kept == [{k: v for k, v in line.items() if k not in TIMES} for line in lines(workdir)]


def _stopped_in_the_first(make, preemption):
    def make_and_stop(*args, **kwargs):
        step = make(*args, **kwargs)

        def stopped(*args):
            preemption.noted = True
            return step(*args)

        return stopped

    return make_and_stop


def test_a_skipped_clip_has_no_influence(data):
    config = default()
    config.data.train_list, config.data.prefix = str(data / "train.list"), str(data)
    source = build_source(config.data, "train", 8)

    def read(index, choose):
        raise UnreadableClipError("broken.mp4", "cannot be read")

    broken = SimpleNamespace(read=read, name=source.name, label=source.label)
    clips = EvalClips(broken, 4, protocol_of(preprocessing_of(config.data)))
    with pytest.raises(UnreadableClipError):
        clips.read(0)
    assert not replace(clips, skip_unreadable=True).read(0)["mask"]


def test_values_that_are_not_finite_are_rejected():
    config, said = default(), []
    config.precise_batch_norm, config.refit_classifier = 1, 1.0
    state = TrainState(np.int32(0), {"w": np.ones(2)}, {"mean": np.ones(2)}, (), np.int32(0))
    broken = {"x": np.array([1, np.inf])}
    parts: Any = SimpleNamespace(
        config=config,
        plan=Plan(steps_per_epoch=1, total_steps=1, boundaries=(), warmup_steps=0),
        compute_statistics=lambda *_: state._replace(batch_stats=broken),
        refit_classifier=lambda *_: state._replace(params=broken),
        log=SimpleNamespace(say=said.append),
    )
    assert _finish_epoch(parts, state, 1, False, lambda: False) is state
    for name, line in zip(("batch-norm statistics", "classifier"), said, strict=True):
        assert f"computing the {name} " in line
        assert "not finite; the previous values are kept" in line


def test_frozen_layers_cannot_have_precise_statistics(data, tmp_path):
    with pytest.raises(UserError, match="frozen_batch_norm=all: frozen layers keep"):
        recipe(data, tmp_path, **{"model.frozen_batch_norm": "all"})


def test_a_frozen_classifier_is_not_refitted(data, tmp_path):
    config = recipe(data, tmp_path)
    config.optimizer.frozen = ("head",)
    plan = Plan(steps_per_epoch=1, total_steps=1, boundaries=(), warmup_steps=0)
    with pytest.raises(UserError, match="set the former to 0"):
        build.build_steps(config, plan, make_mesh(jax.devices()[:1]))
