"""Trains a recipe; run again, it continues.

python -m tsm_jax.train quickstart
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from tsm_jax import cli
from tsm_jax.training.preemption import EXIT_CODE, Preempted, Preemption


def train(config: ConfigDict | str | os.PathLike[str]) -> str:
    """Trains a recipe on every device that jax sees; called again, it continues.

    Args:
        config: a recipe as `tsm_jax.load_recipe` gives it, changed or not; or its file.

    Returns:
        The workdir of the run, for `tsm_jax.load` and `tsm_jax.evaluate`.

    Raises:
        UserError: the recipe, a list or a clip cannot be used; something cannot be written; the
            loss is not finite.
    """
    recipe = cli.recipe_of(config)
    from tsm_jax.assemble.train import train_recipe

    train_recipe(recipe)
    return recipe.workdir


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


cli.make_callable(__name__, train)

if __name__ == "__main__":
    cli.run(main)
