"""Measures how much saving checkpoints in the background slows down training.

    python benchmarks/checkpoint_cost.py --config configs/tsm_k400_videos.py --config.batch_size=8 \
        --config.data.crop_size=112 --steps 20 --rounds 6

Trains the recipe's network on a batch of random clips that stays on the device. Blocks of steps
alternate: one starts with a save, made as in the training loop, the other has none. If a save is
not finished at the end of its block, `unfinished` is greater than zero: increase `--steps`. Prints
a line of JSON for each round and one with the medians: the seconds that a save adds and their share
of the time of a block, which is their share of a run with `--config.checkpoint_every` equal to
`--steps`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time

import jax
from ml_collections import ConfigDict

from tsm_jax import cli
from tsm_jax.assemble.network import build_steps
from tsm_jax.config import make_plan
from tsm_jax.measure.step import random_batch
from tsm_jax.training.checkpoint import Checkpoints
from tsm_jax.training.mesh import make_mesh, put_batch
from tsm_jax.training.state import TrainState, init_state
from tsm_jax.training.steps import Batch, TrainStep


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, default=20, help="steps per block (default: 20)")
    parser.add_argument(
        "--rounds", type=int, default=6, help="rounds of two blocks each (default: 6)"
    )
    options, overrides = parser.parse_known_args()
    config = cli.load_recipe(options.config, overrides)
    step, state, batch = prepare(config)
    state, _ = run(step, state, batch, 2)  # compiles

    rounds = []
    with tempfile.TemporaryDirectory() as workdir:
        checkpoints = Checkpoints(workdir)
        for number in range(options.rounds):
            seconds = {}
            # Swap the order in every round, so a drift in speed does not favour one side.
            for saves in (True, False) if number % 2 else (False, True):
                started = time.perf_counter()
                if saves:
                    checkpoints.save(state, config, {})
                    blocking = time.perf_counter() - started
                state, _ = run(step, state, batch, options.steps)
                seconds[saves] = time.perf_counter() - started
                if saves:
                    started = time.perf_counter()
                    checkpoints.wait()
                    unfinished = time.perf_counter() - started
            rounds.append(
                {
                    "seconds_without": seconds[False],
                    "seconds_with": seconds[True],
                    "added": seconds[True] - seconds[False],
                    "blocking": blocking,
                    "unfinished": unfinished,
                }
            )
            print_json({"round": number + 1, **rounds[-1]})
        checkpoints.close()

    medians = {name: statistics.median(entry[name] for entry in rounds) for name in rounds[0]}
    size = sum(array.nbytes for array in jax.tree.leaves(state))
    share = medians["added"] / medians["seconds_without"]
    print_json({"median_of": options.rounds, **medians, "share": share, "megabytes": size / 1e6})


def prepare(config: ConfigDict) -> tuple[TrainStep, TrainState, Batch]:
    """Returns the training step and the initial state of a recipe, and a batch on the device."""
    mesh = make_mesh()
    built = build_steps(config, make_plan(config, 1000 * config.batch_size), mesh)
    state = init_state(built.network, built.optimizer, config.seed, mesh)
    return built.train_step, state, put_batch(random_batch(config), mesh)


def run(step: TrainStep, state: TrainState, batch: Batch, steps: int) -> tuple[TrainState, float]:
    """Runs steps like the training loop, which reads the metrics of a step during the next one."""
    pending = None
    for _ in range(steps):
        state, metrics = step(state, batch)
        if pending is not None:
            jax.device_get(pending)
        pending = metrics
    return state, float(jax.device_get(pending)["loss"])


def print_json(values: dict[str, float]) -> None:
    print(json.dumps({name: round(value, 4) for name, value in values.items()}), flush=True)


if __name__ == "__main__":
    main()
