"""Names the action in videos.

python -m tsm_jax.predict --model inference/TSM --input a.mp4 b.avi folder/ list.txt
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsm_jax import cli
from tsm_jax.errors import UserError

if TYPE_CHECKING:
    from tsm_jax.deploy.predictor import Predictor
    from tsm_jax.deploy.ray_run import OnRay

# 126 and above mean other things to a shell.
_LARGEST_EXIT_CODE = 125

# Far above what is useful; memory and threads would run out before an answer came.
_LARGEST = {"top_k": math.inf, "batch_size": 1024, "threads": 256, "num_segments": 1024}


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    for name, largest in _LARGEST.items():
        value = getattr(options, name)
        if value is not None and not 1 <= value <= largest:
            most = "" if largest == math.inf else f" and at most {largest}"
            raise UserError(f"--{name} is {value}: it must be at least 1{most}")
    from tsm_jax.assemble.load import load
    from tsm_jax.deploy.inputs import find_videos

    videos = find_videos(options.input)
    open_model = functools.partial(
        load,
        options.model,
        precision=options.precision,
        num_segments=options.num_segments,
        protocol=options.protocol,
    )
    predictor = open_model(engine=options.engine)
    ray = None
    if options.ray is not None:
        from tsm_jax.deploy.ray_run import OnRay

        # The nodes do not choose for themselves: another engine rounds otherwise.
        ray = OnRay(options.ray, functools.partial(open_model, engine=predictor.engine.name))
    try:
        failed = _run(predictor, videos, options, ray)
    except KeyboardInterrupt:
        if options.output not in (None, "-"):
            raise  # the same command continues
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if failed:
        sys.exit(min(failed, _LARGEST_EXIT_CODE))


def _run(
    predictor: Predictor, videos: Sequence[str], options: argparse.Namespace, ray: OnRay | None
) -> int:
    if options.step is not None and options.window is None:
        raise UserError("--step is the distance of windows: give --window SECONDS, too")
    if options.embed:
        return _embed(predictor, videos, options, ray)
    from tsm_jax.deploy.prediction_run import predict_videos

    return predict_videos(
        predictor,
        videos,
        window=options.window,
        step=options.step,
        top_k=options.top_k,
        batch_size=options.batch_size,
        threads=options.threads,
        output=options.output,
        visualize=options.visualize,
        inputs=options.input,
        overwrite=options.overwrite,
        ray=ray,
    )


def _embed(
    predictor: Predictor, videos: Sequence[str], options: argparse.Namespace, ray: OnRay | None
) -> int:
    for name in ("window", "visualize"):
        if getattr(options, name) is not None:
            raise UserError(f"--embed gives features, not classes: leave out --{name}")
    from tsm_jax.deploy.embedding_file import write_embeddings

    return write_embeddings(
        predictor,
        videos,
        options.output,
        batch_size=options.batch_size,
        threads=options.threads,
        inputs=options.input,
        overwrite=options.overwrite,
        ray=ray,
    )


def _parser() -> cli.Parser:
    parser = cli.Parser(
        "predict",
        description=(
            "Prints the most likely classes of each video, best first. The exit code is the number"
            " of videos that could not be read."
        ),
        example="python -m tsm_jax.predict --model inference/TSM --input a.mp4 folder/ --top_k 3",
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        required=True,
        help="an exported folder; or a workdir, a model directory, a file of weights",
    )
    parser.add_argument(
        "--input", metavar="PATH", nargs="+", required=True, help="videos, folders, .txt lists"
    )
    parser.add_argument(
        "--engine",
        metavar="NAME",
        default="auto",
        help="jax, onnxruntime, openvino, or auto: the fastest that is installed (auto)",
    )
    parser.add_argument(
        "--precision",
        metavar="NAME",
        default="float32",
        help="float32, bfloat16 or int8 (float32)",
    )
    parser.add_argument("--top_k", metavar="K", type=int, default=5, help="classes to print (5)")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=(
            "a new file for a line of JSON per video; after an interruption the same command"
            " continues it; - for the standard output"
        ),
    )
    parser.add_argument(
        "--visualize", metavar="PATH", help="a .png for one video, or a folder for pictures"
    )
    parser.add_argument(
        "--embed",
        action="store_true",
        help="write the features before the classifier to --output FILE.npz instead of classes",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results and pictures that exist"
    )
    parser.add_argument(
        "--window",
        metavar="SECONDS",
        type=float,
        help="slide a window of this length over each video and answer for each place",
    )
    parser.add_argument(
        "--step", metavar="SECONDS", type=float, help="distance of windows (half a window)"
    )
    parser.add_argument(
        "--batch_size", metavar="N", type=int, help="views at once (1 on CPU, 16 elsewhere)"
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, help="that decode videos (one per core)"
    )
    parser.add_ray()
    parser.add_argument(
        "--num_segments",
        metavar="T",
        type=int,
        help="frames per clip, if a file of weights does not tell",
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        help=(
            "which views of a video are averaged: test, paddle_predict, mit_ten_crop, ... (the"
            " model's own; docs/data.md lists all)"
        ),
    )
    return parser


if __name__ == "__main__":
    cli.run(main)
