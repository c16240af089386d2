"""The steps of recipes can be lowered for GPU and TPU on a machine that has neither."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import pytest

from tsm_jax import cli
from tsm_jax.assemble.network import build_steps
from tsm_jax.config import make_plan
from tsm_jax.measure.step import random_batch
from tsm_jax.training.mesh import make_mesh, split_by_clips
from tsm_jax.training.state import abstract_state

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
PLATFORMS = ("cuda", "tpu")


def _programs():
    """A few recipes that together cover each kind of network, shift and optimizer rule."""
    configs = {path: _config(path) for path in RECIPES}
    kinds = {path: _kinds(config) for path, config in configs.items()}
    missing, chosen = set().union(*kinds.values()), []
    while missing:
        rarest = min(missing, key=lambda kind: (sum(kind in of for of in kinds.values()), kind))
        having = [path for path in kinds if rarest in kinds[path]]
        path = max(having, key=lambda path: len(kinds[path] & missing))
        missing -= kinds[path]
        chosen.append((path, configs[path]))
    return chosen


def _config(path):
    config = cli.load_recipe(str(path))
    config.model.num_classes = config.model.num_classes or 10
    config.dtype = "bfloat16"  # what `auto` means there
    config.batch_size = min(config.batch_size, 2 * (config.model.batch_norm_group or 8))
    return config


def _kinds(config):
    model = config.model
    depthless = re.sub(r"\d+", "", model.backbone)
    kinds = {("backbone", depthless), ("shift", model.shift), ("frozen", model.frozen_batch_norm)}
    for name in ("batch_norm_group", "dropout"):
        kinds.add((name, model[name] > 0))
    for name in ("label_smoothing", "mixup", "remat"):
        kinds.add((name, config[name] > 0))
    return kinds


@pytest.mark.parametrize(
    "config", [pytest.param(config, id=path.stem) for path, config in _programs()]
)
def test_training_and_evaluation_steps_lower_for_gpu_and_tpu(config):
    mesh = make_mesh(jax.devices()[:2])
    steps = build_steps(config, make_plan(config, 1000), mesh)
    state = abstract_state(steps.network, steps.optimizer, mesh)
    batch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=split_by_clips(mesh))
        for name, array in random_batch(config).items()
    }

    train = steps.train_step.trace(state, batch).lower(lowering_platforms=PLATFORMS).as_text()
    evaluate = steps.eval_step.trace(state.params, state.batch_stats, batch)
    for text in (train, evaluate.lower(lowering_platforms=PLATFORMS).as_text()):
        assert "mhlo.num_partitions = 2" in text
        assert "stablehlo.convolution" in text
        assert "xbf16>" in text
    assert "select_and_scatter" not in train
