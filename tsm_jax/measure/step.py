"""Measures how fast a recipe's training step is, and how close that is to the device's limits.

Imports only jax, flax, optax, numpy and ml_collections, so that the package's folder can be copied
to a machine that has nothing else.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tsm_jax import config as config_lib
from tsm_jax.assemble.network import architecture_of, build_steps
from tsm_jax.config import make_plan, part_size
from tsm_jax.measure import operations
from tsm_jax.models.network import resolve_dtype
from tsm_jax.training.mesh import check_batch, make_mesh, put_batch
from tsm_jax.training.state import init_state

WARM_UP_STEPS = 3
_CLASSES = 400  # for recipes that take the number from their labels; it hardly matters


def measure_step(
    config: ConfigDict,
    *,
    steps: int,
    batches: Iterator[dict[str, np.ndarray]] | None = None,
    profile: str = "",
) -> Iterator[dict[str, Any]]:
    """Yields one JSON-compatible line per measurement.

    Args:
        config: the recipe.
        steps: number of steps to time.
        batches: batches of real clips, at least `WARM_UP_STEPS + steps`; None for random pixels
            that are already on the devices.
        profile: folder for a trace of three steps, to be viewed in TensorBoard or xprof; empty for
            none.

    Raises:
        UserError: the batch cannot be divided over the devices.
    """
    config = config_lib.from_dict(config_lib.to_dict(config))  # a copy
    config.model.num_classes = config.model.num_classes or _CLASSES
    mesh = make_mesh()
    check_batch(part_size(config), config.model.batch_norm_group, mesh)
    built = build_steps(config, make_plan(config, config.batch_size * 1000), mesh)
    state = init_state(built.network, built.optimizer, config.seed, mesh)
    batch = put_batch(random_batch(config), mesh)
    shapes = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding),
        (state, batch),
    )
    yield {"measure": "about", **_about(config, mesh)}

    compiled, times = _compile(built.train_step, shapes)
    yield {"measure": "compile", **times}
    yield {"measure": "memory", **_memory(compiled, config.batch_size)}

    seconds = []
    for index in range(WARM_UP_STEPS + steps):
        tracing = bool(profile) and index in range(WARM_UP_STEPS, WARM_UP_STEPS + 3)
        with jax.profiler.trace(profile) if tracing else nullcontext():
            started = time.perf_counter()
            if batches is not None:
                batch = put_batch(next(batches), mesh)
            state, metrics = compiled(state, batch)
            jax.block_until_ready(metrics)
        if index >= WARM_UP_STEPS:
            seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    yield {
        "measure": "step",
        "input": "real clips" if batches is not None else "random pixels on the device",
        "steps": len(seconds),
        "step_ms": round(1000 * median, 2),
        "fastest_ms": round(1000 * min(seconds), 2),
        "clips_per_second": round(config.batch_size / median, 2),
    }
    cost = operations.count(built.train_step, *shapes)
    roofline = _roofline(cost, median, mesh.size, resolve_dtype(config.dtype))
    yield {"measure": "roofline", **roofline}
    peak = (mesh.devices.flat[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak:
        megabytes, clips = peak / 1e6, config.batch_size / mesh.size
        per_clip = round(megabytes / clips, 1)
        yield {"measure": "peak memory", "mb": round(megabytes), "mb_per_clip": per_clip}


def random_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """Returns random pixels and labels in the shapes of a training batch."""
    rng = np.random.default_rng(0)
    size, classes = config.data.crop_size, config.model.num_classes
    shape = (config.batch_size, 1, config.model.num_segments, size, size, 3)
    return {
        "video": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, classes, config.batch_size).astype(np.int32),
        "mask": np.ones(config.batch_size, bool),
    }


def _about(config: ConfigDict, mesh: Any) -> dict[str, Any]:
    device, model = mesh.devices.flat[0], config.model
    return {
        "model": f"{architecture_of(model)}, shift {model.shift}",
        "dtype": str(resolve_dtype(config.dtype)),
        "devices": f"{mesh.size} x {device.device_kind}",
        "batch": f"{config.batch_size} clips of {model.num_segments} x {config.data.crop_size} px",
        "accumulation_steps": config.accumulation_steps,
        "remat": config.remat,
        "jax": jax.__version__,
    }


def _compile(step: Any, shapes: Any) -> tuple[Any, dict[str, float]]:
    """Times compilation without and with an entry in the persistent cache, a temporary one."""

    def compile_once() -> tuple[Any, float, float]:
        jax.clear_caches()
        started = time.perf_counter()
        lowered = step.lower(*shapes)
        traced = time.perf_counter()
        return lowered.compile(), traced - started, time.perf_counter() - traced

    with _empty_cache():
        _, tracing, cold = compile_once()
        compiled, _, warm = compile_once()
    return compiled, {
        "tracing_s": round(tracing, 2),
        "cold_s": round(cold, 2),
        "from_cache_s": round(warm, 2),
    }


@contextmanager
def _empty_cache() -> Iterator[None]:
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    with tempfile.TemporaryDirectory() as folder:
        for directory in (folder, before):
            compilation_cache.reset_cache()
            jax.config.update("jax_compilation_cache_dir", directory)
            if directory == folder:
                yield


def _memory(compiled: Any, clips: int) -> dict[str, float]:
    """Returns the memory that XLA plans on each device."""
    analysis = compiled.memory_analysis()
    total = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    return {
        "arguments_mb": round(analysis.argument_size_in_bytes / 1e6, 1),
        "activations_mb": round(analysis.temp_size_in_bytes / 1e6, 1),
        "mb_per_clip_of_the_batch": round(total / 1e6 / clips, 1),
    }


def _roofline(
    cost: operations.Cost, step_seconds: float, devices: int, dtype: Any
) -> dict[str, float]:
    """Compares the step with a matrix product and a copy that are timed on the first device."""
    per_second, bytes_per_second = _fastest_product(dtype), _fastest_copy(dtype)
    operating = cost.operations / devices / per_second
    moving = cost.bytes / devices / bytes_per_second
    floor = max(operating, moving)
    return {
        "tera_operations": round(cost.operations / 1e12, 3),
        "gigabytes": round(cost.bytes / 1e9, 3),
        "device_tera_operations_per_second": round(per_second / 1e12, 2),
        "device_gigabytes_per_second": round(bytes_per_second / 1e9, 1),
        "operations_ms": round(1000 * operating, 2),
        "bytes_ms": round(1000 * moving, 2),
        "share_of_roofline": round(floor / step_seconds, 3),
    }


def _fastest_product(dtype: Any) -> float:
    """Returns the operations per second of a large matrix product."""
    on_cpu = jax.default_backend() == "cpu"
    size = 2048 if on_cpu else 8192
    matrix = jnp.ones((size, size), dtype)
    return 2 * size**3 / _fastest(jax.jit(jnp.matmul), matrix, matrix)


def _fastest_copy(dtype: Any) -> float:
    """Returns the bytes per second, read and written, of an elementwise operation."""
    values = jnp.ones(2**26 if jax.default_backend() == "cpu" else 2**29, dtype)
    return 2 * values.nbytes / _fastest(jax.jit(lambda array: array + 1), values)


def _fastest(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    times = []
    for _ in range(6):
        started = time.perf_counter()
        function(*arguments).block_until_ready()
        times.append(time.perf_counter() - started)
    return min(times)
