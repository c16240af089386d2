"""The number of classes of a recipe that does not set it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsm_jax import cli
from tsm_jax.assemble.data import class_names, with_num_classes
from tsm_jax.errors import UserError

RECIPE = str(Path(__file__).parents[2] / "configs" / "own_videos.py")


@pytest.fixture
def recipe(tmp_path):
    def load(**overrides):
        values = {"data.train_list": tmp_path / "train.list", **overrides}
        return cli.load_recipe(RECIPE, [f"--config.{key}={v}" for key, v in values.items()])

    return load


def test_the_number_of_classes_is_the_number_of_names(recipe, tmp_path):
    (tmp_path / "labels.txt").write_text("run\nwalk\nswim\n")
    config = recipe()
    counted = with_num_classes(config)
    assert counted.model.num_classes == 3
    assert class_names(counted) == ["run", "walk", "swim"]
    assert config.model.num_classes == 0  # the given recipe is unchanged
    (tmp_path / "others.txt").write_text("run\nwalk\n")
    other = recipe(**{"data.labels": tmp_path / "others.txt"})
    assert with_num_classes(other).model.num_classes == 2


def test_a_given_number_is_kept(recipe, tmp_path):
    (tmp_path / "labels.txt").write_text("run\nwalk\nswim\n")
    config = recipe(**{"model.num_classes": 4})
    assert with_num_classes(config).model.num_classes == 4
    with pytest.raises(UserError, match="has 3 class names, .* set --config.model.num_classes=3"):
        class_names(config)


def test_no_names_to_count(recipe, tmp_path):
    with pytest.raises(UserError, match="prepare lists folders --videos DIR --val_share 0.2"):
        with_num_classes(recipe())
    (tmp_path / "train.list").write_text("a.mp4 0\n")
    with pytest.raises(UserError, match="there is no labels.txt beside it"):
        with_num_classes(recipe())
    (tmp_path / "labels.txt").write_text("")
    with pytest.raises(UserError, match="has no labels"):
        with_num_classes(recipe())
