"""Evaluates weights on the validation list of a recipe.

python -m tsm_jax.evaluate --weights output/quickstart
"""

from __future__ import annotations

from collections.abc import Sequence

from tsm_jax import cli
from tsm_jax.errors import UserError


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(
        "evaluate",
        description=(
            "Evaluates weights on config.data.val_list, every clip once. Without --config the"
            " recipe of the run in --weights is taken; without --weights, config.workdir."
        ),
        example="python -m tsm_jax.evaluate --weights output/quickstart",
    )
    parser.add_recipe(required=False)
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="a workdir, a model directory, a .pdparams, a URL or a name of the zoo",
    )
    options, config = parser.parse_with_recipe(arguments)
    if options.weights is None and config is None:
        raise UserError("nothing to evaluate: give --config, --weights, or both")
    from tsm_jax.evaluation_run import evaluate_weights
    from tsm_jax.training.processes import joined

    with joined():
        evaluate_weights(config, options.weights)


if __name__ == "__main__":
    cli.run(main)
