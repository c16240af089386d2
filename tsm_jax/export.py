"""Exports a trained or converted network for deployment.

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
        raise UserError(f"--num_segments must be at least 2, got {options.num_segments}")
    if not options.streaming and (options.browser or options.fps is not None):
        raise UserError("--browser and --fps require --streaming")
    if options.streaming and set(options.precisions) != {"float32"}:
        raise UserError("--streaming supports only float32: remove --precisions")
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
            "{file} in {engine} ({precision}), {input} input: largest relative difference of the"
            " logits {relative_difference:.1e}".format(**check)
        )
    if (int8 := exported["int8"]) is not None:
        print(
            f"int8 predicts the same class as float32 for {int8['agreement']:.1%} of"
            f" {int8['clips']} videos, which were {'not ' * int8['held_out']}used for calibration;"
            f" its logits differ by {int8['error']:.1%} of their spread over the classes"
        )
    print(f"exported to {options.output}; its README.md explains how to run it")


def _parser() -> cli.Parser:
    parser = cli.Parser(
        "export",
        description=(
            "Writes a folder that contains the network as StableHLO and ONNX, its tensors, labels"
            " and preprocessing, and checks every graph against the network."
        ),
        example="python -m tsm_jax.export --weights output/quickstart --output inference/TSM",
    )
    parser.add_argument(
        "--weights",
        metavar="PATH",
        required=True,
        help="workdir, model directory, weight file, URL or name from the model zoo",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to create")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=FORMATS,
        help="formats to write (default: both)",
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        default=PRECISIONS[:1],
        help="bfloat16 adds a StableHLO graph for GPU and TPU, int8 an ONNX graph"
        " (default: float32)",
    )
    parser.add_argument(
        "--streaming",
        action="store_true",
        help="export a graph that takes one frame at a time, for tsm stream; requires a network"
        " with shift=past_only",
    )
    parser.add_argument(
        "--browser",
        action="store_true",
        help="with --streaming: add a web page that runs the network",
    )
    parser.add_argument(
        "--fps",
        metavar="RATE",
        type=float,
        help="with --streaming: frames per second that the network takes (default: the value"
        " stored with the weights)",
    )
    parser.add_argument(
        "--videos",
        metavar="PATH",
        nargs="+",
        help="videos, folders or lists; used to check the graphs and to calibrate int8",
    )
    parser.add_argument(
        "--num_segments",
        metavar="T",
        type=int,
        help="frames per clip, if the weight file does not specify it",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="class names for a weight file, one per line, if its classes are not well known",
    )
    return parser


if __name__ == "__main__":
    cli.run(main)
