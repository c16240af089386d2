"""Measures what the training loop adds to the time of the input pipeline.

    python benchmarks/loop_overhead.py --config configs/tsm_k400_packed.py

Reads the recipe's training clips, first with the pipeline alone and then with the real loop: with
the transfer to the devices, the log, and a step that returns at once. Prints a line of JSON for
each, `--repeats` times in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from tsm_jax import cli
from tsm_jax.assemble.data import build_source, build_train_clips, read_train_batches
from tsm_jax.config import Plan
from tsm_jax.data.pipeline import Batch, TrainOrder
from tsm_jax.training.log import RunLog
from tsm_jax.training.loop import TrainingRun, train
from tsm_jax.training.mesh import make_mesh, put_batch
from tsm_jax.training.preemption import Preemption
from tsm_jax.training.progress import Progress
from tsm_jax.training.state import TrainState


class NoCheckpoints:
    """Replaces the checkpoints: the loop only calls these two methods."""

    def validated(self, step: int) -> bool:
        return True

    def wait(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument(
        "--steps", type=int, default=20, help="steps after the first one (default: 20)"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options, overrides = parser.parse_known_args()
    config = cli.load_recipe(options.config, overrides)
    source = build_source(config.data, "train", config.model.num_classes)
    clips = build_train_clips(config, source)
    order = TrainOrder(len(source), config.batch_size, config.seed)
    mesh = make_mesh()

    def batches() -> Iterator[Batch]:
        return read_train_batches(config, clips, range(options.steps + 1))

    def report(measure: str, seconds: float, cpu_seconds: float) -> None:
        clips = options.steps * config.batch_size
        values = {
            "measure": measure,
            "seconds": round(seconds, 3),
            "clips_per_second": round(clips / seconds),
            "cpu_ms_per_clip": round(1000 * cpu_seconds / clips, 3),
        }
        print(json.dumps(values), flush=True)

    @jax.jit
    def nothing(video: jax.Array) -> dict[str, jax.Array]:
        zeros = {name: jnp.zeros(()) for name in ("loss", "top1", "top5", "bad", "bad_steps")}
        norm = video[(0,) * video.ndim].astype(jnp.float32)  # reads one byte of the batch
        return {**zeros, "count": jnp.ones(()), "learning_rate": jnp.ones(()), "grad_norm": norm}

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Any]:
        return state, nothing(batch["video"])

    # Compile before anything is timed.
    step(fresh_state(), put_batch(next(batches()), mesh))
    for _ in range(options.repeats):
        report("pipeline", *seconds_after_first(batches()))
        # The epoch is longer than the run, so nothing is validated or saved.
        plan = Plan(options.steps + 2, options.steps + 1, (), 0)
        timed = Timed(batches())
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            with RunLog(folder, first_step=0) as log:
                checkpoints: Any = NoCheckpoints()
                run = TrainingRun(
                    config=config,
                    plan=plan,
                    mesh=mesh,
                    class_names=(),
                    first_step=0,
                    train_step=step,
                    validate=lambda *_: {},
                    compute_statistics=None,
                    refit_classifier=None,
                    checkpoints=checkpoints,
                    log=log,
                    progress=Progress(
                        log,
                        config,
                        plan,
                        order=order,
                        clip_name=source.name,
                        val_clips=0,
                        first_step=0,
                    ),
                    preemption=Preemption(),
                )
                train(run, fresh_state(), timed)
            seconds = time.perf_counter() - timed.first
            cpu_seconds = time.process_time() - timed.first_cpu
        report("training loop", seconds, cpu_seconds)


def fresh_state() -> TrainState:
    none = jnp.zeros((), jnp.int32)
    return TrainState(none, {}, {}, (), none)


def seconds_after_first(batches: Iterator[Batch]) -> tuple[float, float]:
    """Returns wall-clock and CPU seconds of reading all batches but the first."""
    next(batches)
    started, cpu = time.perf_counter(), time.process_time()
    for _ in batches:
        pass
    return time.perf_counter() - started, time.process_time() - cpu


class Timed(Iterator[Batch]):
    """Iterates over batches and records when the first one was ready.

    Attributes:
        first: wall-clock time at that moment, in seconds.
        first_cpu: CPU time used up to that moment, in seconds.
    """

    def __init__(self, batches: Iterator[Batch]):
        self._batches = batches
        self.first = self.first_cpu = 0.0

    def __next__(self) -> Batch:
        batch = next(self._batches)
        if not self.first:
            self.first, self.first_cpu = time.perf_counter(), time.process_time()
        return batch


if __name__ == "__main__":
    main()
