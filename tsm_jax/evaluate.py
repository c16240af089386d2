"""Evaluates weights on the validation list of a recipe.

python -m tsm_jax.evaluate --weights output/quickstart --report quickstart_report
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
            " docs/evaluating.md explains the report."
        ),
        example="python -m tsm_jax.evaluate --weights output/quickstart --report quickstart_report",
    )
    parser.add_recipe(required=False)
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="a workdir, a model directory, a file of weights, a URL or a name of the zoo",
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


if __name__ == "__main__":
    cli.run(main)
