"""The training-step benchmark: its counts, its lines, and its few requirements."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest
from small_recipe import RECIPE

from tsm_jax import benchmark, cli
from tsm_jax.assemble.network import build_training_network
from tsm_jax.config import default
from tsm_jax.data import moving_shapes
from tsm_jax.errors import UserError
from tsm_jax.measure.operations import Cost, count

OF_A_BARE_MACHINE = (
    *("tsm_jax", "jax", "jaxlib", "flax", "optax", "numpy", "ml_collections", "absl", "yaml"),
    # What those need themselves.
    *("ml_dtypes", "opt_einsum", "scipy", "chex", "toolz", "treescope", "typing_extensions"),
    *("etils", "msgpack", "orbax", "tensorstore", "rich", "contextlib2", "six"),
    "toy_backbone",  # of the recipe here
)


def by_measure(output):
    return {line["measure"]: line for line in map(json.loads, output.splitlines())}


def test_counts_products_and_convolutions_also_in_nested_calls():
    x, w = jnp.zeros((5, 7)), jnp.zeros((7, 3))
    once = Cost(2 * 5 * 7 * 3, 4 * (5 * 7 + 7 * 3 + 5 * 3))
    assert count(jnp.dot, x, w) == once
    assert count(jax.jit(jnp.dot), x, w) == once
    options = {"xla_cpu_enable_fast_math": False}  # a step has some on a GPU
    assert count(jax.jit(jnp.dot, compiler_options=options), x, w) == once

    def four_times(x, w):
        return jax.lax.scan(lambda carry, _: (carry, jnp.dot(x, w)), 0, length=4)[1]

    assert count(four_times, x, w) == Cost(4 * once.operations, 4 * once.bytes)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_with_its_gradients_costs_three_times_the_operations(stride):
    def convolve(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, w, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=numbers
        )
        return y.sum()

    arrays = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4, 6))
    operations = 2 * 2 * (8 // stride) ** 2 * 9 * 4 * 6
    assert count(convolve, *arrays).operations == operations
    assert count(jax.grad(convolve, (0, 1)), *arrays).operations == 3 * operations


def test_counts_the_published_operations_of_the_network():
    network = build_training_network(default())
    params, batch_stats = (
        {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
        for shapes in (network.param_shapes, network.batch_stat_shapes)
    )
    video = jax.ShapeDtypeStruct((1, 8, 224, 224, 3), "float32")
    cost = count(network.apply, params, batch_stats, video)
    # Table 2 of the paper: TSM with 8 frames on ResNet-50 takes 33 G multiply-adds.
    assert cost.operations / 2 == pytest.approx(33e9, rel=0.02)


@pytest.mark.slow
def test_reads_the_clips_of_the_recipe(tmp_path, capsys):
    moving_shapes.render(tmp_path / "shapes", train_videos=16, val_videos=8, seed=0)
    data = {
        "train_list": tmp_path / "shapes/train.list",
        "prefix": tmp_path / "shapes",
    }
    overrides = [f"--config.data.{key}={value}" for key, value in data.items()]
    arguments = ["train", "--config", RECIPE, *overrides, "--steps", "1"]
    benchmark.main([*arguments, "--input", "recipe", "--config.batch_size=8"])
    lines = {
        line["measure"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())
    }
    assert lines["step"]["input"] == "real clips"
    with pytest.raises(UserError, match="do not fill one batch"):
        benchmark.main([*arguments, "--input", "recipe", "--config.batch_size=32"])


def test_prints_lines_that_add_up_on_a_machine_with_nothing_but_jax_and_flax(run_with_only):
    code = f"""
from tsm_jax import benchmark, cli
cli.run(benchmark.main, ["train", "--config", {RECIPE!r}, "--steps", "2"])
"""
    result = run_with_only(code, *OF_A_BARE_MACHINE)
    assert result.returncode == 0, result.stderr
    lines = by_measure(result.stdout)
    assert {"about", "compile", "memory", "step", "roofline"} <= lines.keys()
    step, config = lines["step"], cli.load_recipe(RECIPE)
    assert step["steps"] == 2
    assert step["fastest_ms"] <= step["step_ms"]
    per_second = 1000 * config.batch_size / step["step_ms"]
    assert step["clips_per_second"] == pytest.approx(per_second, rel=0.01)
    roofline = lines["roofline"]
    floor = max(roofline["operations_ms"], roofline["bytes_ms"])
    assert roofline["share_of_roofline"] == pytest.approx(floor / step["step_ms"], abs=0.01)
    assert lines["compile"]["from_cache_s"] < lines["compile"]["cold_s"]
