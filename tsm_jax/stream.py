"""Recognizes the action in a live stream, frame by frame.

python -m tsm_jax.stream --model inference/live --input 0
"""

from __future__ import annotations

from collections.abc import Sequence

from tsm_jax import cli
from tsm_jax.errors import UserError

_FASTEST = 1000.0  # frames per second


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    if options.fps is not None and not 0 < options.fps <= _FASTEST:
        raise UserError(f"--fps is {options.fps}: it must be above 0 and at most {_FASTEST:.0f}")
    if not 1 <= options.smoothing <= _FASTEST:
        raise UserError(
            f"--smoothing is {options.smoothing}: it must be from 1 (none) to {_FASTEST:.0f}"
        )
    from tsm_jax.assemble.load import load_stream
    from tsm_jax.deploy.stream_run import follow

    follow(
        load_stream(options.model, engine=options.engine),
        options.input,
        frame_rate=options.fps,
        patience=options.smoothing,
        output=options.output,
        visualize=options.visualize,
        overwrite=options.overwrite,
    )


def _parser() -> cli.Parser:
    parser = cli.Parser(
        "stream",
        description=(
            "Follows a camera, a stream address or a video frame by frame with a network trained"
            " with shift=past_only, and prints a line whenever the answer changes (docs/live.md)."
        ),
        example="python -m tsm_jax.stream --model inference/live --input 0 --visualize window",
    )
    add = parser.add_argument
    about = "a folder from export --streaming; or a workdir, a model directory, ..."
    add("--model", metavar="PATH", required=True, help=about)
    about = "a camera number (0), a stream address (rtsp://...) or a video file"
    add("--input", metavar="INPUT", required=True, help=about)
    about = "jax, onnxruntime, openvino, or auto for the fastest installed one (auto)"
    add("--engine", metavar="NAME", default="auto", help=about)
    about = "frames per second for the network (the rate stored with the weights)"
    add("--fps", metavar="RATE", type=float, help=about)
    about = "frames in a row that another class must lead before it is shown; 1 for none (2)"
    add("--smoothing", metavar="N", type=int, default=2, help=about)
    about = "new file for one JSON line per frame, or - for standard output"
    add("--output", metavar="FILE", help=about)
    about = "`window`, or a video file (.mp4), to show the answers on the frames"
    add("--visualize", metavar="PATH", help=about)
    add("--overwrite", action="store_true", help="replace existing results and video")
    return parser


if __name__ == "__main__":
    cli.run(main)
