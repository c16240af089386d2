"""Trains a recipe, or continues its run.

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
    """Trains a recipe on all devices that jax sees; if called again, continues the run.

    Args:
        config: a recipe from `tsm_jax.load_recipe`, changed or not, or the path of its file.

    Returns:
        The workdir of the run, for `tsm_jax.load` and `tsm_jax.evaluate`.

    Raises:
        UserError: the recipe, a list or a clip cannot be used; a file cannot be written; the loss
            is not finite.
    """
    recipe = cli.recipe_of(config)
    from tsm_jax.assemble.train import train_recipe

    train_recipe(recipe)
    return recipe.workdir


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(
        "train",
        description="Trains a recipe on all devices. The same command continues an existing run.",
        example="python -m tsm_jax.train quickstart --epochs=5",
    )
    parser.add_recipe(required=True)
    parser.add_argument(
        "--wandb", action="store_true", help="also log to Weights & Biases (extra wandb)"
    )
    options, config = parser.parse_with_recipe(arguments)
    assert config is not None
    with Preemption() as preemption:
        # Late: mistakes in the command are reported at once, and reader processes need no jax.
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
                print(f"{reason}: run the same command to continue", flush=True)
                sys.exit(EXIT_CODE)


cli.make_callable(__name__, train)

if __name__ == "__main__":
    cli.run(main)
