"""Converts weights of other projects to a model directory and back.

python -m tsm_jax.convert --input TSM_k400.pdparams --output models/tsm_k400
python -m tsm_jax.convert --input models/tsm_k400 --output TSM.pdparams
python -m tsm_jax.convert --input models/mine --output TSM.pth --to mit
python -m tsm_jax.convert --list
"""

from __future__ import annotations

from collections.abc import Sequence

from tsm_jax import cli
from tsm_jax.errors import UserError

TORCH = (".pth", ".pth.tar")


def main(arguments: Sequence[str]) -> None:
    parser = cli.Parser(
        "convert",
        description=(
            "Converts weights of PaddleVideo (.pdparams), MIT, mmaction2, torchvision and timm"
            " (.pth, .pth.tar, .safetensors) to a model directory, and back for the first three."
        ),
        example="python -m tsm_jax.convert --input TSM_k400.pdparams --output models/tsm_k400",
    )
    parser.add_argument(
        "--list", action="store_true", help="list the published weights that can be used by name"
    )
    parser.add_argument(
        "--input",
        metavar="PATH",
        help="a weight file, a model directory, a workdir, a URL, or a name from --list",
    )
    parser.add_argument("--output", metavar="PATH", help="the file or directory to write")
    parser.add_argument(
        "--to",
        choices=("model", "pdparams", "mit", "mmaction2"),
        help=(
            "output format (default: pdparams if --output ends in .pdparams, else model); mit and"
            " mmaction2 write a .pth"
        ),
    )
    parser.add_argument(
        "--num_segments",
        metavar="T",
        type=int,
        help="frames per clip in training, if the file does not say (default for .pdparams: 8)",
    )
    parser.add_argument(
        "--labels", metavar="FILE", help="class names, one per line, for an unknown data set"
    )
    options = parser.parse_args(arguments)
    if options.list:
        from tsm_jax.weights.zoo import table

        print(table())
        return
    for name in ("input", "output"):
        if getattr(options, name) is None:
            parser.error(f"the following arguments are required: --{name}")
    if options.num_segments is not None and options.num_segments < 2:
        raise UserError(f"--num_segments is {options.num_segments}: it must be at least 2")
    to = _output_format(options.output, options.to)
    from tsm_jax.assemble.weights import load_model

    model = load_model(options.input, num_segments=options.num_segments, labels=options.labels)
    if to == "model":
        from tsm_jax.weights.model_directory import write_model_directory

        write_model_directory(model, options.output)
    elif to == "pdparams":
        from tsm_jax.weights.foreign_models import write_paddle_model

        write_paddle_model(model, options.output)
    else:
        from tsm_jax.weights.foreign_models import write_torch_model

        write_torch_model(model, options.output, to)
    architecture = model.architecture
    print(
        f"{options.output}: {architecture}, {architecture.num_classes} classes,"
        f" {architecture.num_segments} segments, shift {architecture.shift}"
        + (f" by {architecture.shift_fraction}" if architecture.shift != "none" else "")
    )


def _output_format(output: str, to: str | None) -> str:
    is_torch, is_paddle = output.endswith(TORCH), output.endswith(".pdparams")
    if is_torch and to is None:
        raise UserError(f"--output is {output}: choose its format with --to mit or --to mmaction2")
    to = to or ("pdparams" if is_paddle else "model")
    if (is_paddle, is_torch) != (to == "pdparams", to in ("mit", "mmaction2")):
        raise UserError(
            f"--output is {output} but --to is {to}: pdparams needs a name that ends in .pdparams,"
            " mit and mmaction2 one in .pth or .pth.tar, and model one in none of these"
        )
    return to


if __name__ == "__main__":
    cli.run(main)
