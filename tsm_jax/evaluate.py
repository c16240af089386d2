"""Evaluates weights on the validation list of a recipe.

python -m tsm_jax.evaluate --weights output/quickstart --report quickstart_report
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from tsm_jax import cli
from tsm_jax.errors import UserError

if TYPE_CHECKING:
    from tsm_jax.report.results import Evaluation


def evaluate(
    weights: str | os.PathLike[str] | None = None,
    config: ConfigDict | str | os.PathLike[str] | None = None,
    *,
    average: str | None = None,
    report: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Evaluates weights on every clip of a validation list once.

    Args:
        weights: anything that `tsm_jax.load` accepts; None for `config.workdir`.
        config: the recipe with the `data.val_list` to evaluate on, or its file; None for the recipe
            of the run in `weights`.
        average: what to average over the views of a clip: `logits` or `probabilities`; None for
            the protocol's choice.
        report: a folder for tables, pictures and report.html; an earlier report is replaced.

    Returns:
        The evaluation, with `metrics`, `labels`, `logits` and more; `summary()` describes it.

    Raises:
        UserError: the weights, the list or a clip cannot be read; the report cannot be written.
    """
    if weights is None and config is None:
        raise UserError("nothing to evaluate: give weights, a recipe, or both")
    recipe = None if config is None else cli.recipe_of(config)
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
            "Evaluates weights on every clip of config.data.val_list once. --config defaults to"
            " the recipe of the run in --weights, and --weights to config.workdir."
            " docs/evaluating.md explains the report."
        ),
        example="python -m tsm_jax.evaluate --weights output/quickstart --report quickstart_report",
    )
    parser.add_recipe(required=False)
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="a workdir, a model directory, a file of weights, a URL or a name in the zoo",
    )
    parser.add_argument(
        "--report",
        metavar="DIR",
        help="write tables, pictures and report.html to DIR, replacing an earlier report",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help=(
            "evaluate two sets of weights on the same clips, instead of --weights, and test whether"
            " one is better; each may also be the folder of a report"
        ),
    )
    parser.add_argument(
        "--average",
        choices=("logits", "probabilities"),
        help="what to average over the views of a clip (default: as config.data.protocol does)",
    )
    options, config = parser.parse_with_recipe(arguments)
    if options.compare and options.weights:
        parser.error("--compare A B replaces --weights: give only one of them")
    if options.weights is None and config is None and not options.compare:
        raise UserError("nothing to evaluate: give --config, --weights, or both")
    _evaluate(options, config)


def _evaluate(options: argparse.Namespace, config: ConfigDict | None) -> None:
    import jax

    from tsm_jax.assemble.evaluate import evaluate_both, evaluate_weights
    from tsm_jax.report.comparison import compare, is_report
    from tsm_jax.report.results import Evaluation
    from tsm_jax.report.writer import check_target, write_report
    from tsm_jax.training.processes import joined

    with joined():
        first = jax.process_index() == 0
        if options.report is not None and first:
            check_target(options.report)
        if not options.compare:
            found = (evaluate_weights(config, options.weights, average=options.average),)
        elif options.report and is_report(options.compare[0]):
            raise UserError(
                f"{options.compare[0]} is already a report: give weights to evaluate, or omit"
                " --report"
            )
        else:
            found = evaluate_both(config, *options.compare, average=options.average)
        if not first:
            return
        for one in found:
            print(one.summary())
            if isinstance(one, Evaluation) and one.warning:
                print(f"warning: {one.warning}")
        comparison = compare(*found) if len(found) == 2 else None
        if comparison:
            print(*comparison.lines(), sep="\n")
        if options.report is not None and isinstance(found[0], Evaluation):
            print(f"report: {write_report(found[0], options.report, comparison)}")


cli.make_callable(__name__, evaluate)

if __name__ == "__main__":
    cli.run(main)
