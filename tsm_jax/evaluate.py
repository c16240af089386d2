"""Evaluates weights on the validation list of a recipe.

python -m tsm_jax.evaluate --weights output/quickstart --report quickstart_report
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from tsm_jax import cli
from tsm_jax.errors import UserError
from tsm_jax.recipe_files import recipe_of

if TYPE_CHECKING:
    from tsm_jax.report.results import Evaluation


def evaluate(
    weights: str | os.PathLike[str] | None = None,
    config: ConfigDict | str | os.PathLike[str] | None = None,
    *,
    average: str | None = None,
    report: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Evaluates weights on a validation list, every clip once.

    Args:
        weights: anything that `tsm_jax.load` takes; None for `config.workdir`.
        config: the recipe, or its file, whose `data.val_list` to evaluate on; None for that of the
            run in `weights`.
        average: `logits` or `probabilities`, over the views of a clip; None for what the protocol
            does.
        report: a folder for tables, pictures and report.html; an earlier report is replaced.

    Returns:
        What was found: `metrics`, `labels`, `logits` and more; `summary()` is its text.

    Raises:
        UserError: the weights, the list or a clip cannot be read; the report cannot be written.
    """
    if weights is None and config is None:
        raise UserError("nothing to evaluate: give weights, a recipe, or both")
    recipe = None if config is None else recipe_of(config)
    from tsm_jax.assemble.evaluate import evaluate_weights
    from tsm_jax.report.writer import check_target, write_report

    if report is not None:
        check_target(os.fspath(report))
    path = None if weights is None else os.fspath(weights)
    evaluation = evaluate_weights(recipe, path, average=average)
    if report is not None:
        write_report(evaluation, os.fspath(report))
    return evaluation


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(
        "evaluate",
        description=(
            "Evaluates weights on config.data.val_list, every clip once. Without --config the"
            " recipe of the run in --weights is taken; without --weights, config.workdir."
            " docs/evaluating.md explains the report."
        ),
        example="python -m tsm_jax.evaluate --weights output/quickstart --report quickstart_report",
    )
    parser.add_recipe(required=False)
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="a workdir, a model directory, a .pdparams, a URL or a name of the zoo",
    )
    parser.add_argument(
        "--report",
        metavar="DIR",
        help="write tables, pictures and report.html there; an earlier report is replaced",
    )
    parser.add_argument(
        "--average",
        choices=("logits", "probabilities"),
        help="what is averaged over the views of a clip (what config.data.protocol does)",
    )
    options, config = parser.parse_with_recipe(arguments)
    if options.weights is None and config is None:
        raise UserError("nothing to evaluate: give --config, --weights, or both")
    import jax

    from tsm_jax.assemble.evaluate import evaluate_weights
    from tsm_jax.report.writer import check_target, write_report
    from tsm_jax.training.processes import joined

    with joined():
        first = jax.process_index() == 0
        if options.report is not None and first:
            check_target(options.report)
        evaluation = evaluate_weights(config, options.weights, average=options.average)
        if first:
            print(evaluation.summary())
            if evaluation.warning:
                print(f"warning: {evaluation.warning}")
        if options.report is not None and first:
            print(f"report: {write_report(evaluation, options.report)}")


cli.make_callable(__name__, evaluate)

if __name__ == "__main__":
    cli.run(main)
