"""Measures how fast a recipe's training clips are read, in clips per second of each part."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tsm_jax.assemble.data import (
    build_source,
    build_train_clips,
    ensure_rendered,
    read_train_batches,
    with_num_classes,
)
from tsm_jax.config import make_plan
from tsm_jax.data.pipeline import Batch, Reading, TrainOrder, train_batches
from tsm_jax.data.sampling import random_frame_of_each_segment
from tsm_jax.data.sources import TrainClips
from tsm_jax.errors import UserError
from tsm_jax.measure.step import WARM_UP_STEPS

_WARM_UP = 4  # clips: imports, page cache, first allocations
_BATCH = 16  # clips per batch of the pipeline; what a host reads for one device


def measure_reading(
    config: ConfigDict,
    clips: int,
    *,
    threads: Sequence[int] | None = None,
    workers: Sequence[int] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields one JSON-compatible line per measurement.

    Args:
        config: the recipe.
        clips: number of clips to measure on.
        threads: numbers of threads of the pipeline; None for the recipe's own.
        workers: numbers of workers, each combined with each of `threads`; None for the recipe's
            own.

    Raises:
        UserError: the list or a clip cannot be read, or the list is too short.
    """
    config, source = _open(config)
    if len(source) < _BATCH:
        raise UserError(
            f"{config.data.train_list} has {len(source)} clips: use a list of at least {_BATCH}"
        )
    train_clips = build_train_clips(config, source)
    about = {"source": config.data.source, "num_segments": config.model.num_segments}
    readers = {
        "decode": lambda i: read_only(train_clips, i),
        "decode and transform": clip_reader(train_clips),
    }
    for measure, read in readers.items():
        yield {"measure": measure, **about, **one_core(read, clips)}
    for num_workers in workers or [config.data.workers]:
        for num_threads in threads or [config.data.threads]:
            reading = Reading(threads=num_threads, workers=num_workers)
            yield {
                "measure": "pipeline",
                **about,
                "threads": reading.options(_BATCH).num_threads,
                "workers": num_workers,
                **pipeline(train_clips, reading, clips),
            }


def _open(config: ConfigDict) -> tuple[ConfigDict, Any]:
    """Returns the recipe with its number of classes, and its training clips, rendered if needed."""
    with redirect_stdout(sys.stderr):  # standard output is reserved for JSON lines
        ensure_rendered(config)
    config = with_num_classes(config)
    return config, build_source(config.data, "train", config.model.num_classes)


def training_batches(config: ConfigDict, steps: int) -> Iterator[Batch]:
    """Yields batches of a recipe as training reads them, enough for a warm-up and `steps`.

    Raises:
        UserError: the list or a clip cannot be read, or the list does not fill one batch.
    """
    config, source = _open(config)
    make_plan(config, len(source))
    clips = build_train_clips(config, source)
    return read_train_batches(config, clips, range(steps + WARM_UP_STEPS))


def clip_reader(clips: TrainClips) -> Callable[[int], Any]:
    """Returns a function that reads a training clip into reused memory, as the pipeline does."""
    out = np.empty(clips.shape, np.uint8)
    return lambda i: clips.read(i % len(clips.source), 0, out)


def read_only(clips: TrainClips, index: int) -> Sequence[np.ndarray]:
    """Reads the frames of a training clip without any transform."""

    def choose(num_frames: int) -> np.ndarray:
        rng = np.random.default_rng((clips.seed, index))
        return random_frame_of_each_segment(num_frames, clips.num_segments, rng)

    return clips.source.read(index % len(clips.source), choose)


def one_core(read: Callable[[int], Any], clips: int) -> dict[str, float]:
    """Measures wall-clock and CPU time of `read(0)`, `read(1)`, ... on this thread."""
    for i in range(_WARM_UP):
        read(i)
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(clips):
        read(i)
    return _rates(clips, time.perf_counter() - wall, time.process_time() - cpu)


def pipeline(train_clips: TrainClips, reading: Reading, clips: int) -> dict[str, float]:
    """Measures whole batches after the first one, whose waiting time is `first_batch_ms`."""
    steps = -(-clips // _BATCH) + 1
    order = TrainOrder(len(train_clips.source), _BATCH, train_clips.seed)
    started = time.perf_counter()
    batches = train_batches(
        train_clips, order, batch_size=_BATCH, steps=range(steps), reading=reading
    )
    next(batches)
    first, cpu = time.perf_counter(), time.process_time()
    measured = sum(len(batch["index"]) for batch in batches)
    wall, cpu = time.perf_counter() - first, time.process_time() - cpu
    # The CPU time of worker processes is not measured.
    rates = _rates(measured, wall, None if reading.workers else cpu)
    return {**rates, "first_batch_ms": round(1000 * (first - started), 1)}


def _rates(clips: int, wall: float, cpu: float | None = None) -> dict[str, float]:
    rates = {
        "clips": clips,
        "clips_per_second": round(clips / wall, 2),
        "ms_per_clip": round(1000 * wall / clips, 3),
    }
    if cpu is not None:
        rates["cpu_ms_per_clip"] = round(1000 * cpu / clips, 3)
    return rates
