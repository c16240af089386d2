"""Exports a trained or converted network to run anywhere.

python -m tsm_jax.export --weights output/quickstart --output inference/quickstart
"""

from __future__ import annotations

from collections.abc import Sequence

from tsm_jax import cli
from tsm_jax.errors import UserError

FORMATS = ("stablehlo", "onnx")
PRECISIONS = ("float32", "bfloat16", "int8")


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    if options.num_segments is not None and options.num_segments < 2:
        raise UserError(f"--num_segments is {options.num_segments}: it must be at least 2")
    if not options.streaming and (options.browser or options.fps is not None):
        raise UserError("--browser and --fps are for streams: add --streaming")
    if options.streaming and set(options.precisions) != {"float32"}:
        raise UserError("a stream is exported in float32 alone: leave --precisions out")
    from tsm_jax.assemble.weights import load_model
    from tsm_jax.deploy.videos import find_videos
    from tsm_jax.exporting.stream_writer import export_stream
    from tsm_jax.exporting.writer import export_model

    model = load_model(options.weights, num_segments=options.num_segments, labels=options.labels)
    common = {
        "videos": find_videos(options.videos) if options.videos else (),
        "formats": options.formats,
    }
    if options.streaming:
        exported = export_stream(
            model,
            options.output,
            frame_rate=options.fps,
            browser=options.browser,
            source=options.weights,
            **common,
        )
    else:
        exported = export_model(model, options.output, precisions=options.precisions, **common)
    for check in exported["self_check"]:
        print(
            "{file} in {engine} ({precision}) on {input} input: logits differ by"
            " {relative_difference:.1e} of the largest".format(**check)
        )
    if (int8 := exported["int8"]) is not None:
        print(
            f"int8 agrees with float32 on the best class of {int8['agreement']:.1%} of"
            f" {int8['clips']} videos, on which it was {'not ' * int8['held_out']}calibrated;"
            f" logits are off by {int8['error']:.1%} of their spread over the classes"
        )
    print(f"{options.output}: ready; README.md in it says how to run it")


def _parser() -> cli.Parser:
    parser = cli.Parser(
        "export",
        description=(
            "Writes one folder with the network as StableHLO and ONNX, its tensors, its labels and"
            " its preprocessing, and checks every graph against the network."
        ),
        example="python -m tsm_jax.export --weights output/quickstart --output inference/TSM",
    )
    parser.add_argument(
        "--weights",
        metavar="PATH",
        required=True,
        help="a workdir, a model directory, a file of weights, a URL or a name of the zoo",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="the folder to write")
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=FORMATS, help="what to write (both)"
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        default=PRECISIONS[:1],
        help="bfloat16 adds a StableHLO graph for GPU and TPU, int8 an ONNX graph (float32)",
    )
    parser.add_argument(
        "--streaming",
        action="store_true",
        help="one graph for one frame, for tsm stream: of a network with shift=past_only",
    )
    parser.add_argument(
        "--browser", action="store_true", help="with --streaming: add a page that runs it"
    )
    parser.add_argument(
        "--fps",
        metavar="RATE",
        type=float,
        help="with --streaming: frames per second to see (as stored with the weights)",
    )
    parser.add_argument(
        "--videos",
        metavar="PATH",
        nargs="+",
        help="videos, folders or lists, to check with and to calibrate int8",
    )
    parser.add_argument(
        "--num_segments",
        metavar="T",
        type=int,
        help="frames per clip, if a file of weights does not tell",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="class names of a file of weights, one a line, if not well known",
    )
    return parser


if __name__ == "__main__":
    cli.run(main)
