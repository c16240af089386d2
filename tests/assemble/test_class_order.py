"""Weights whose class order differs from the data are neither evaluated nor trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tsm_jax.assemble.evaluate import evaluate_model
from tsm_jax.assemble.train import train_recipe
from tsm_jax.assemble.weights import Source
from tsm_jax.config import default
from tsm_jax.data.protocols import Preprocessing
from tsm_jax.errors import UserError
from tsm_jax.models.architecture import Architecture
from tsm_jax.weights.model_directory import Model

MODEL = Model(Architecture("resnet18", 2, 8, width=8), Preprocessing(), ["jump", "run"], {})


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "labels.txt").write_text("run\njump\n")
    config = default()
    config.model.num_classes = 2
    config.model.backbone, config.model.width = "resnet18", 8
    config.data.source = "synthetic"
    config.data.train_list = config.data.val_list = str(tmp_path / "val.list")
    config.workdir = str(tmp_path / "work")
    return config


@pytest.mark.parametrize("given", [True, False])
def test_evaluation(recipe, tmp_path, given):
    """The class names come from the recipe or from a file beside the list."""
    if given:
        recipe.data.labels = str(tmp_path / "labels.txt")
    with pytest.raises(
        UserError, match=r"x\.pth and .*labels.txt have the same classes in another"
    ):
        evaluate_model(recipe, MODEL, weights="x.pth")
    (tmp_path / "labels.txt").write_text("jump\nrun\n")
    with pytest.raises(UserError, match="does not fit the network"):  # it has no tensors
        evaluate_model(recipe, replace(MODEL), weights="x.pth")


def test_training_from_a_classifier(recipe, monkeypatch):
    source = Source({"head.fc.bias": np.zeros(2)}, None, ["jump", "run"])
    monkeypatch.setattr("tsm_jax.assemble.weights.load_source", lambda _: source)
    recipe.init_from, recipe.init_head = "x.pth", True
    recipe.model.batch_norm_group = recipe.batch_size = 8
    with pytest.raises(UserError, match="have the same classes in another order"):
        train_recipe(recipe)
    recipe.init_head = False  # the classifier is not taken
    with pytest.raises(UserError, match="does not fit the network: backbone.* is missing"):
        train_recipe(recipe)
