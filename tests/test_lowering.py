"""The steps of every recipe become programs for GPU and TPU on a machine that has neither."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import pytest
from jax.sharding import NamedSharding

from tsm_jax import build, cli
from tsm_jax.config import flatten, make_plan
from tsm_jax.training.mesh import make_mesh, replicated, split_by_clips
from tsm_jax.training.state import fresh_state
from tsm_jax.training.step_benchmark import random_batch

RECIPES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
PLATFORMS = ("cuda", "tpu")


def _programs():
    """One recipe for each set of values that the steps depend on; sources of data do not count."""
    chosen = {}
    for path in RECIPES:
        config = cli.load_recipe(str(path))
        config.model.num_classes = config.model.num_classes or 10
        config.dtype = "bfloat16"  # what `auto` is there
        config.batch_size = min(config.batch_size, 2 * (config.model.batch_norm_group or 8))
        values = dict(flatten(config))
        skipped = ("data.", "optimizer.", "init", "workdir", "epochs", "log_", "seed", "eval_")
        key = [(name, value) for name, value in values.items() if not name.startswith(skipped)]
        chosen.setdefault((*key, config.data.crop_size, config.optimizer.decay), (path, config))
    return chosen.values()


@pytest.mark.parametrize(
    "config", [pytest.param(config, id=path.stem) for path, config in _programs()]
)
def test_training_and_evaluation_steps_lower_for_gpu_and_tpu(config):
    mesh = make_mesh(jax.devices()[:2])
    steps = build.build_steps(config, make_plan(config, 1000), mesh)
    fresh = partial(fresh_state, steps.network, steps.optimizer)
    state = _shapes(jax.eval_shape(fresh, jax.random.key(0)), replicated(mesh))
    batch = _shapes(random_batch(config), split_by_clips(mesh))

    train = steps.train_step.trace(state, batch).lower(lowering_platforms=PLATFORMS).as_text()
    evaluate = steps.eval_step.trace(state.params, state.batch_stats, batch)
    for text in (train, evaluate.lower(lowering_platforms=PLATFORMS).as_text()):
        assert "mhlo.num_partitions = 2" in text
        assert "stablehlo.convolution" in text
        assert "xbf16>" in text
    assert "select_and_scatter" not in train


def _shapes(tree, sharding: NamedSharding):
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), tree
    )
