"""Trains a recipe; run again, it continues.

python -m tsm_jax.train quickstart
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tsm_jax import cli
from tsm_jax.training.preemption import EXIT_CODE, Preempted, Preemption


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(
        "train",
        description="Trains a recipe on every device it sees. The same command continues a run.",
        example="python -m tsm_jax.train quickstart --epochs=5",
    )
    parser.add_recipe(required=True)
    parser.add_argument(
        "--wandb", action="store_true", help="log to Weights & Biases as well (extra wandb)"
    )
    options, config = parser.parse_with_recipe(arguments)
    assert config is not None
    with Preemption() as preemption:
        # Late: a mistake in the command is reported at once, and reading workers need no jax.
        from tsm_jax.assemble.train import train_recipe
        from tsm_jax.training.processes import joined

        loggers = []
        if options.wandb:
            from tsm_jax.training.wandb_log import WeightsAndBiases

            loggers.append(WeightsAndBiases)
        with joined():
            try:
                train_recipe(config, preemption=preemption, loggers=loggers)
            except Preempted as reason:
                print(f"{reason}: the same command continues", flush=True)
                sys.exit(EXIT_CODE)


if __name__ == "__main__":
    cli.run(main)
