"""Converts weights: PaddleVideo's `.pdparams` to a model directory, and back.

python -m tsm_jax.convert --input TSM_k400.pdparams --output models/tsm_k400
python -m tsm_jax.convert --input models/tsm_k400 --output TSM.pdparams
"""

from __future__ import annotations

from collections.abc import Sequence

from tsm_jax import cli
from tsm_jax.errors import UserError


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(
        "convert",
        description="Converts weights to a model directory, or to PaddleVideo's .pdparams.",
        example="python -m tsm_jax.convert --input TSM_k400.pdparams --output models/tsm_k400",
    )
    parser.add_argument(
        "--input",
        metavar="PATH",
        required=True,
        help="a .pdparams, a model directory, a workdir, a URL or a name of the zoo",
    )
    parser.add_argument("--output", metavar="PATH", required=True, help="what to write")
    parser.add_argument(
        "--to",
        choices=("model", "pdparams"),
        help="what to write it as (by the name of --output: pdparams if it ends so, else model)",
    )
    parser.add_argument(
        "--num_segments",
        metavar="T",
        type=int,
        help="frames per clip that a .pdparams was trained with; it does not store it (8)",
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="class names of a .pdparams, one a line, if not well known"
    )
    options = parser.parse_args(arguments)
    if options.num_segments is not None and options.num_segments < 2:
        raise UserError(f"--num_segments is {options.num_segments}: it must be at least 2")
    named_pdparams = options.output.endswith(".pdparams")
    to = options.to or ("pdparams" if named_pdparams else "model")
    if named_pdparams != (to == "pdparams"):
        raise UserError(
            f"--output is {options.output} and --to is {to}: the name of a .pdparams ends so, and"
            " that of a model directory does not"
        )
    from tsm_jax.assemble.weights import load_model
    from tsm_jax.weights.model_directory import write_model_directory
    from tsm_jax.weights.paddle_model import write_paddle_model

    model = load_model(options.input, num_segments=options.num_segments, labels=options.labels)
    if to == "pdparams":
        write_paddle_model(model, options.output)
    else:
        write_model_directory(model, options.output)
    architecture = model.architecture
    print(
        f"{options.output}: {architecture}, {architecture.num_classes} classes,"
        f" {architecture.num_segments} segments, shift {architecture.shift} by"
        f" {architecture.shift_fraction}"
    )


if __name__ == "__main__":
    cli.run(main)
