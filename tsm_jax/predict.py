"""Recognizes the actions in videos.

python -m tsm_jax.predict --model inference/TSM --input a.mp4 b.avi folder/ list.txt
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tsm_jax import cli
from tsm_jax.errors import UserError

if TYPE_CHECKING:
    from tsm_jax.deploy.predictor import Predictor
    from tsm_jax.deploy.ray_run import OnRay

# Shells reserve exit codes from 126 for other purposes.
_LARGEST_EXIT_CODE = 125

# Far above useful values; beyond them, memory or threads would run out before the first answer.
_LARGEST = {"top_k": math.inf, "batch_size": 1024, "threads": 256, "num_segments": 1024}


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    for name, largest in _LARGEST.items():
        value = getattr(options, name)
        if value is not None and not 1 <= value <= largest:
            most = "" if largest == math.inf else f" and at most {largest}"
            raise UserError(f"--{name} is {value}: it must be at least 1{most}")
    from tsm_jax.assemble.load import load
    from tsm_jax.deploy.videos import find_videos

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

        # The nodes must use the engine chosen here, because another one rounds differently.
        ray = OnRay(options.ray, functools.partial(open_model, engine=predictor.engine.name))
    try:
        failed = _run(predictor, videos, options, ray)
    except KeyboardInterrupt:
        if options.output not in (None, "-"):
            raise  # the same command resumes the run
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if failed:
        sys.exit(min(failed, _LARGEST_EXIT_CODE))


def _run(
    predictor: Predictor, videos: Sequence[str], options: argparse.Namespace, ray: OnRay | None
) -> int:
    if options.step is not None and options.window is None:
        raise UserError("--step is the distance between windows: add --window SECONDS")
    from tsm_jax.deploy.prediction_run import predict_videos, write_embeddings

    shared: dict[str, Any] = {
        "batch_size": options.batch_size,
        "threads": options.threads,
        "output": options.output,
        "inputs": options.input,
        "overwrite": options.overwrite,
        "ray": ray,
    }
    if options.embed:
        for name in ("window", "visualize"):
            if getattr(options, name) is not None:
                raise UserError(f"--embed writes features, not classes: remove --{name}")
        return write_embeddings(predictor, videos, **shared)
    return predict_videos(
        predictor,
        videos,
        window=options.window,
        step=options.step,
        top_k=options.top_k,
        visualize=options.visualize,
        **shared,
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
    add = parser.add_argument
    about = "an exported folder, a workdir, a model directory or a weights file"
    add("--model", metavar="PATH", required=True, help=about)
    about = "videos, folders or .txt lists"
    add("--input", metavar="PATH", nargs="+", required=True, help=about)
    about = "jax, onnxruntime, openvino, or auto for the fastest installed one (auto)"
    add("--engine", metavar="NAME", default="auto", help=about)
    about = "float32, bfloat16 or int8 (float32)"
    add("--precision", metavar="NAME", default="float32", help=about)
    add("--top_k", metavar="K", type=int, default=5, help="number of classes to print (5)")
    about = (
        "new file for one JSON line per video, or - for standard output; after an interruption,"
        " the same command resumes it"
    )
    add("--output", metavar="FILE", help=about)
    about = "a .png for a single video, or a folder for one picture per video"
    add("--visualize", metavar="PATH", help=about)
    about = "write features (the classifier's input) instead of classes, to --output FILE.npz"
    add("--embed", action="store_true", help=about)
    add("--overwrite", action="store_true", help="replace existing results and pictures")
    about = "slide a window of this length over each video and give one answer per position"
    add("--window", metavar="SECONDS", type=float, help=about)
    add("--step", metavar="SECONDS", type=float, help="distance between windows (half a window)")
    about = "views per batch (1 on CPU, 16 elsewhere)"
    add("--batch_size", metavar="N", type=int, help=about)
    add("--threads", metavar="N", type=int, help="decoding threads (one per core)")
    parser.add_ray()
    about = "frames per clip, if the weights file does not store them"
    add("--num_segments", metavar="T", type=int, help=about)
    about = (
        "which views of a video are averaged: test, paddle_predict, mit_ten_crop, ... (the"
        " model's own; docs/data.md lists all)"
    )
    add("--protocol", metavar="NAME", help=about)
    return parser


if __name__ == "__main__":
    cli.run(main)
