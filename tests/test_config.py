"""Recipes: complete, locked, checked, and turned into steps from the real length of the data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tsm_jax import cli
from tsm_jax.config import (
    CHANGEABLE_ON_RESUME,
    CHOICES,
    default,
    flatten,
    from_dict,
    make_plan,
    peak_learning_rate,
    validate,
)
from tsm_jax.errors import UserError

REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted((REPOSITORY / "configs").glob("*.py"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_validates_and_has_exactly_the_known_keys(path):
    config = cli.load_recipe(str(path))
    assert dict(flatten(config)).keys() == dict(flatten(default())).keys()
    assert config.workdir == f"output/{path.stem}"
    assert config.is_locked


def test_every_key_is_read_by_the_program():
    code = "".join(
        path.read_text()
        for path in (REPOSITORY / "tsm_jax").rglob("*.py")
        if path.name != "config.py"
    )
    # The architecture's keys are read by the names of a dataclass's fields.
    names = {key.rsplit(".", 1)[-1] for key, _ in flatten(default())}
    by_plan = {"boundaries", "warmup_epochs", "reference_batch_size"}
    unread = {
        name for name in names - by_plan if not re.search(rf"\.{name}\b|^    {name}: ", code, re.M)
    }
    assert not unread


def test_lists_of_keys_name_real_keys():
    keys = dict(flatten(default())).keys()
    assert set(CHOICES) <= keys
    assert set(CHANGEABLE_ON_RESUME) <= keys


def test_epochs_become_steps_after_overrides():
    config = default()
    config.batch_size = 10
    config.optimizer.warmup_epochs = 0.5
    plan = make_plan(config, 239)
    assert (plan.steps_per_epoch, plan.total_steps) == (23, 23 * 50)
    assert plan.boundaries == (23 * 20, 23 * 40)
    assert plan.warmup_steps == 12


def test_a_list_smaller_than_a_batch_is_an_error_with_the_way_out():
    with pytest.raises(UserError, match=r"30 clips .* set --config.batch_size to at most 30"):
        make_plan(default(), 30)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.shift", "left", "config.model.shift is 'left'.*'past_first'"),
        ("model.depth", 20, "config.model.depth is 20.*18, 34, 50"),
        ("epochs", 0, "config.epochs is 0: it must be at least 1"),
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


def test_survives_being_stored():
    config = default()
    config.optimizer.boundaries = (1, 2)
    stored = config.to_dict()
    stored["optimizer"]["boundaries"] = [1, 2]  # JSON knows no tuples
    assert dict(flatten(from_dict(stored))) == dict(flatten(config))
    del stored["seed"]
    with pytest.raises(UserError, match="another version of tsm_jax: it differs in seed"):
        from_dict(stored)


def test_the_learning_rate_scales_with_the_batch_only_if_it_is_asked_to():
    config = default()
    config.batch_size = 256
    assert peak_learning_rate(config) == 0.02
    config.optimizer.reference_batch_size = 64
    assert peak_learning_rate(config) == pytest.approx(0.08)


def test_parts_of_a_batch_hold_whole_groups():
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
