"""What saving in the background costs a training run.

    python benchmarks/checkpoint_cost.py --config configs/tsm_k400_videos.py --config.batch_size=8 \
        --config.data.crop_size=112 --steps 20 --rounds 6

Trains the recipe's network on one batch of random clips that lies on the device. Blocks of steps
alternate: one block begins with a save, as the training loop makes it, the other has none. A save
that is not done at the end of its block is told (`unfinished`: then take more steps). Prints a line
of JSON for each round and one with the medians: seconds that a save adds, and their share of a
block, which is that of a run with `--config.checkpoint_every` of `--steps`.
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
    parser.add_argument("--steps", type=int, default=20, help="in a block (default 20)")
    parser.add_argument("--rounds", type=int, default=6, help="two blocks each (default 6)")
    options, overrides = parser.parse_known_args()
    config = cli.load_recipe(options.config, overrides)
    step, state, batch = prepare(config)
    state, _ = run(step, state, batch, 2)  # compiles

    rounds = []
    with tempfile.TemporaryDirectory() as workdir:
        checkpoints = Checkpoints(workdir)
        for number in range(options.rounds):
            seconds = {}
            # The order changes, so that a drift of the machine does not count for one side.
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
            tell({"round": number + 1, **rounds[-1]})
        checkpoints.close()

    medians = {name: statistics.median(entry[name] for entry in rounds) for name in rounds[0]}
    size = sum(array.nbytes for array in jax.tree.leaves(state))
    share = medians["added"] / medians["seconds_without"]
    tell({"median_of": options.rounds, **medians, "share": share, "megabytes": size / 1e6})


def prepare(config: ConfigDict) -> tuple[TrainStep, TrainState, Batch]:
    """The recipe's step and state, and a batch on the device."""
    mesh = make_mesh()
    built = build_steps(config, make_plan(config, 1000 * config.batch_size), mesh)
    state = init_state(built.network, built.optimizer, config.seed, mesh)
    return built.train_step, state, put_batch(random_batch(config), mesh)


def run(step: TrainStep, state: TrainState, batch: Batch, steps: int) -> tuple[TrainState, float]:
    """Some steps, as the loop does them: each one's metrics are read while the next one runs."""
    pending = None
    for _ in range(steps):
        state, metrics = step(state, batch)
        if pending is not None:
            jax.device_get(pending)
        pending = metrics
    return state, float(jax.device_get(pending)["loss"])


def tell(values: dict[str, float]) -> None:
    print(json.dumps({name: round(value, 4) for name, value in values.items()}), flush=True)


if __name__ == "__main__":
    main()
