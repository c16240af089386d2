"""Recipes are complete, locked and validated; epochs become steps from the length of the data."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_recipe import RECIPE, overrides

from tsm_jax import cli
from tsm_jax.assemble import data as build_data
from tsm_jax.assemble import evaluate as evaluation_run
from tsm_jax.assemble import network as build
from tsm_jax.assemble import probe, weights
from tsm_jax.assemble import train as training_run
from tsm_jax.config import (
    KEYS,
    VERSION,
    default,
    flatten,
    from_dict,
    make_plan,
    peak_learning_rate,
    to_dict,
    validate,
)
from tsm_jax.data import moving_shapes
from tsm_jax.errors import UserError
from tsm_jax.training.mesh import make_mesh

REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted((REPOSITORY / "configs").glob("*.py"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_validates_and_has_exactly_the_known_keys(path):
    config = cli.load_recipe(str(path))
    assert dict(flatten(config)).keys() == dict(flatten(default())).keys()
    assert config.workdir == f"output/{path.stem}"
    assert config.is_locked


# The functions in the module of the keys itself that convert epochs to steps.
PLANNING = ("make_plan", "part_size", "peak_learning_rate")


@pytest.fixture
def read_keys(monkeypatch):
    """The names of keys that the program has read so far, except for checks and copies."""
    groups = [("", default()), *((f"{n}.", default()[n]) for n in ("model", "data", "optimizer"))]
    prefixes = {frozenset(group.keys()): prefix for prefix, group in groups}
    keys, original = set(), ConfigDict.__getitem__

    def read(self, key):
        frame = sys._getframe(1)
        if frame.f_code.co_name == "__getattr__":
            frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        program = (REPOSITORY / "tsm_jax") in path.parents and path.name != "config.py"
        if program or frame.f_code.co_name in PLANNING:
            keys.add(prefixes.get(frozenset(self.keys()), "") + key)
        return original(self, key)

    monkeypatch.setattr(ConfigDict, "__getitem__", read)
    return keys


def step_without_compiling(state, batch):
    numbers = ("loss", "top1", "top5", "count", "grad_norm", "learning_rate", "bad", "bad_steps")
    metrics = {name: np.zeros(()) for name in numbers}
    return state._replace(step=state.step + 1), metrics


def test_every_key_is_read_by_the_program(read_keys, monkeypatch, tmp_path):
    """Each key is read by training, by evaluation, or when opening other kinds of data."""
    changes = {"data.source": "synthetic", "epochs": 2, "init_from": "weights"}
    config = cli.load_recipe(RECIPE, overrides(tmp_path, tmp_path / "work", **changes))
    monkeypatch.setattr(build_data, "SYNTHETIC_CLIPS", 16)
    nothing = weights.Source({}, None, None)
    monkeypatch.setattr(weights, "load_source", lambda _: nothing)
    monkeypatch.setattr(weights, "choose_start", lambda *_, **__: SimpleNamespace(loaded={}))
    monkeypatch.setattr(build, "make_train_step", lambda *_, **__: step_without_compiling)
    training_run.train_recipe(config, make_mesh(jax.devices()[:1]))
    found = {"top1": 0.0}, {"logits": np.zeros((16, 8)), "rank": np.zeros(16)}
    monkeypatch.setattr(evaluation_run, "_evaluate_clips", lambda *_: found)
    evaluation_run.evaluate_weights(config, str(tmp_path / "work"))

    monkeypatch.setattr(build_data, "read_frame_list", lambda *_, **__: [])
    monkeypatch.setattr(moving_shapes, "ensure", lambda *_, **__: None)
    config.data.source, config.data.render = "frames", "moving_shapes"
    build_data.ensure_rendered(config)
    source = build_data.build_source(config.data, "train", 8)
    assert probe._groups(config.data, source) is None
    assert dict(flatten(default())).keys() - read_keys == set()


def test_every_number_has_a_range():
    for key, value in flatten(default()):
        first = value[0] if isinstance(value, tuple) and value else value
        if isinstance(first, (int, float)) and not isinstance(first, bool):
            assert KEYS[key].range or KEYS[key].choices, key


@pytest.mark.parametrize("template", ["img_{:05}.jpg", "{}.jpg", "{0:05d}.png", "a/{:6d}"])
def test_templates_of_frames(template):
    config = default()
    config.data.frame_template = template
    validate(config)


def test_every_default_is_one_of_its_choices():
    validate(default())
    assert dict(flatten(default())) == {name: key.default for name, key in KEYS.items()}


def test_epochs_become_steps_after_overrides():
    config = default()
    config.batch_size = 10
    config.optimizer.warmup_epochs = 0.5
    plan = make_plan(config, 239)
    assert (plan.steps_per_epoch, plan.total_steps) == (23, 23 * 50)
    assert plan.boundaries == (23 * 20, 23 * 40)
    assert plan.warmup_steps == 12


def test_too_many_steps_and_equal_boundaries_are_errors():
    config = default()
    config.epochs = 10**6
    with pytest.raises(UserError, match="config.epochs is 1000000: with 7812 steps per epoch"):
        make_plan(config, 10**6)
    config = default()
    config.optimizer.boundaries = (0.1, 0.2)
    with pytest.raises(UserError, match=r"boundaries is \(0.1, 0.2\).* fall on steps \(0, 1\)"):
        make_plan(config, 3 * 128)
    config.optimizer.schedule = "cosine"  # has no boundaries
    make_plan(config, 3 * 128)


def test_a_list_smaller_than_a_batch_suggests_a_batch_size():
    with pytest.raises(UserError, match=r"30 clips .* set --config.batch_size to at most 30"):
        make_plan(default(), 30)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.shift", "left", "config.model.shift is 'left'.*'past_first'"),
        ("model.backbone", "vgg", "config.model.backbone is 'vgg'.*'resnet18', 'resnet34'"),
        ("epochs", 0, "config.epochs is 0: it must be at least 1"),
        ("batch_size", 10**9, "config.batch_size is 1000000000.*at most 1000000"),
        ("batch_size", True, "config.batch_size is True: it must be of type int"),
        ("epochs", 10**18, "config.epochs is 1000000000000000000.*at most"),
        ("seed", None, "config.seed is None: it must be of type int"),
        ("label_smoothing", 1.0, "config.label_smoothing is 1.0.*at most 0.99"),
        ("workdir", "a\x1b[2J", "config.workdir is .*must not contain control"),
        ("model.shift_every", True, "config.model.shift_every is True"),
        ("model.width", 10**6, "config.model.width is 1000000"),
        ("data.frame_template", "{", "config.data.frame_template is '{'.*one number"),
        ("data.frame_template", "frame.jpg", "config.data.frame_template"),
        ("data.frame_template", "{:05}_{:05}.jpg", "config.data.frame_template"),
        ("data.frame_template", "{:999999999}.jpg", "config.data.frame_template"),
        ("data.frame_template", "{0.__class__}.jpg", "config.data.frame_template"),
        ("data.rendered_clips", (5,), "config.data.rendered_clips is .*two integers"),
        ("data.rendered_clips", (0, 0), "config.data.rendered_clips is .*at least 1"),
        ("optimizer.learning_rate", 0.0, "config.optimizer.learning_rate is 0.0.*at least 1e-12"),
        ("optimizer.learning_rate", math.nan, "config.optimizer.learning_rate is nan"),
        ("optimizer.decay_factor", -5.0, "config.optimizer.decay_factor is -5.0"),
        ("optimizer.fc_weight_multiplier", math.nan, "config.optimizer.fc_weight_multiplier"),
        ("optimizer.fc_bias_multiplier", math.inf, "config.optimizer.fc_bias_multiplier is inf"),
        ("optimizer.fc_weight_multiplier", -10.0, "config.optimizer.fc_weight_multiplier is -10"),
        ("optimizer.boundaries", (1, "a"), "config.optimizer.boundaries is .*'a' is not a number"),
        ("optimizer.boundaries", (math.nan,), "config.optimizer.boundaries is .*nan"),
        ("optimizer.boundaries", (40, 20), "config.optimizer.boundaries is .*greater than the one"),
        ("optimizer.boundaries", (-3,), "config.optimizer.boundaries is .*at least"),
        ("optimizer.warmup_epochs", 51.0, r"config.optimizer.warmup_epochs is 51.*epochs \(50\)"),
        ("optimizer.warmup_epochs", 30.0, "boundaries is .*must not be less than .*warmup_epochs"),
        ("optimizer.clip_norm", 1e-40, "config.optimizer.clip_norm is 1e-40"),
        ("optimizer.momentum", 1.0, "config.optimizer.momentum is 1.0.*at most 0.9999"),
        ("optimizer.momentum", 1.5, "config.optimizer.momentum is 1.5.*at most 0.9999"),
        ("batch_size", 24, r"multiple of config.model.batch_norm_group \(16\)"),
        ("data.short_side", 200, r"at least config.data.crop_size \(224\)"),
    ],
)
def test_a_wrong_value_names_its_key(key, value, message):
    config = default()
    *parents, last = key.split(".")
    group = config[parents[0]] if parents else config
    group[last] = value
    with pytest.raises(UserError, match=message):
        validate(config)


def test_one_segment_cannot_be_shifted_by_its_reciprocal():
    config = default()
    config.model.num_segments = 1
    config.model.shift_fraction = "1/num_segments"
    with pytest.raises(UserError, match="config.model.shift=none"):
        validate(config)


def test_a_small_batch_is_one_batch_norm_group():
    config = default()
    config.batch_size = 6
    validate(config)


def test_stored_recipe_round_trip():
    config = default()
    config.optimizer.boundaries = (1, 2)
    stored = to_dict(config)
    stored["optimizer"]["boundaries"] = [1, 2]  # JSON has no tuples
    assert dict(flatten(from_dict(stored))) == dict(flatten(config))
    for key, value, message in (
        ("seed", [1], r"damaged: seed is \(1,\); it must be of type int"),
        ("model", 1, "differ in"),
    ):
        with pytest.raises(UserError, match=message):
            from_dict({**stored, key: value})
    with pytest.raises(UserError, match="config.model.backbone is 'vgg'"):
        from_dict({**stored, "model": {**stored["model"], "backbone": "vgg"}})
    for version, message in ((VERSION + 1, "use a newer tsm_jax"), ("2", "is not a version")):
        with pytest.raises(UserError, match=message):
            from_dict({**stored, "version": version})
    del stored["seed"]
    with pytest.raises(UserError, match="they differ in seed"):
        from_dict(stored)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.depth=18", "did you mean --config.model.backbone=resnet18?"),
        ("model.data_format=NCHW", "remove it"),
    ],
)
def test_a_key_of_an_older_version_suggests_the_current_one(override, message):
    with pytest.raises(UserError, match=re.escape(message)):
        cli.load_recipe(str(RECIPES[0]), [f"--config.{override}"])


def test_learning_rate_scales_with_the_batch_size_only_on_request():
    config = default()
    config.batch_size = 256
    assert peak_learning_rate(config) == 0.02
    config.optimizer.reference_batch_size = 64
    assert peak_learning_rate(config) == pytest.approx(0.08)


def test_parts_of_a_batch_contain_whole_groups():
    config = default()
    config.accumulation_steps = 4
    validate(config)
    config.accumulation_steps = 3
    with pytest.raises(UserError, match=r"batch_size is 128: .* multiple of .*accumulation_steps"):
        validate(config)
    config.batch_size = 96
    config.accumulation_steps = 4
    with pytest.raises(UserError, match=r"batch_size / config.accumulation_steps is 24"):
        validate(config)
