"""Measures the speed of parts of the program, and prints JSON lines.

python -m tsm_jax.benchmark predict --model inference/TSM
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tsm_jax import cli
from tsm_jax.errors import UserError


def main(arguments: Sequence[str]) -> None:
    cli.choose(
        "benchmark",
        {"train": train, "data": data, "predict": predict},
        arguments,
        description="Measures a part of the program; see `benchmark COMMAND --help`.",
        example="python -m tsm_jax.benchmark predict --help",
    )


def train(arguments: Sequence[str]) -> None:
    """Measures the training step on the devices."""
    parser = cli.Parser(
        "benchmark train",
        description=(
            "Times the training step of a recipe. Prints one JSON line each for compilation"
            " (without and with the cache), planned memory, the step, its share of the device's"
            " roofline, and peak memory."
        ),
        example=("python -m tsm_jax.benchmark train tsm_k400_frames --batch_size=64"),
    )
    parser.add_recipe(required=True)
    parser.add_argument(
        "--steps", metavar="N", type=int, default=20, help="number of steps to time (default: 20)"
    )
    parser.add_argument(
        "--input",
        choices=("synthetic", "recipe"),
        default="synthetic",
        help="random pixels stored on the devices (default), or the recipe's training clips",
    )
    parser.add_argument(
        "--profile", metavar="DIR", default="", help="write a trace of three steps to DIR"
    )
    options, config = parser.parse_with_recipe(arguments)
    assert config is not None
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    from tsm_jax.measure.step import measure_step

    batches = None
    if options.input == "recipe":
        from tsm_jax.measure.data import training_batches

        batches = training_batches(config, options.steps)
    _print(measure_step(config, steps=options.steps, batches=batches, profile=options.profile))


def data(arguments: Sequence[str]) -> None:
    """Measures reading, decoding, transforming and batching."""
    parser = cli.Parser(
        "benchmark data",
        description=(
            "Prints one JSON line each for reading and decoding the training clips of the recipe"
            " on one core, the same with augmentation, and the whole pipeline with every"
            " combination of --threads and --workers."
        ),
        example=("python -m tsm_jax.benchmark data tsm_k400_packed --threads 1 2 4"),
    )
    parser.add_recipe(required=True)
    parser.add_argument(
        "--clips",
        metavar="N",
        type=int,
        default=256,
        help="number of clips to measure on (default: 256)",
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", help="numbers of threads (default: config.data.threads)"
    )
    parser.add_argument(
        "--workers", type=int, nargs="+", help="numbers of workers (default: config.data.workers)"
    )
    options, config = parser.parse_with_recipe(arguments)
    assert config is not None
    if options.clips < 1:
        parser.error("--clips must be at least 1")
    from tsm_jax.measure.data import measure_reading

    lines = measure_reading(config, options.clips, threads=options.threads, workers=options.workers)
    _print(lines)


def predict(arguments: Sequence[str]) -> None:
    """Measures the network by engine, precision and batch size, and the reading of videos."""
    parser = cli.Parser(
        "benchmark predict",
        description="Times an exported network in all installed engines, in turn.",
        example="python -m tsm_jax.benchmark predict --model inference/TSM --batch_sizes 1 4",
    )
    parser.add_argument("--model", metavar="DIR", required=True, help="an exported folder")
    parser.add_argument(
        "--engines",
        metavar="NAME",
        nargs="+",
        help="jax, onnxruntime, openvino (default: all installed)",
    )
    parser.add_argument(
        "--precisions",
        metavar="NAME",
        nargs="+",
        default=["float32"],
        help="float32, bfloat16, int8 (default: float32)",
    )
    parser.add_argument(
        "--batch_sizes",
        metavar="N",
        type=int,
        nargs="+",
        default=[1],
        help="numbers of clips per batch (default: 1)",
    )
    parser.add_argument(
        "--repeats", metavar="N", type=int, default=10, help="number of rounds (default: 10)"
    )
    parser.add_argument(
        "--input",
        metavar="PATH",
        nargs="+",
        help="videos, folders or lists, whose reading is timed as well",
    )
    options = parser.parse_args(arguments)
    if min(options.repeats, *options.batch_sizes) < 1:
        raise UserError("--repeats and --batch_sizes must be at least 1")
    from tsm_jax.deploy.engine import check_names
    from tsm_jax.deploy.videos import find_videos
    from tsm_jax.measure.predict import measure_prediction

    for name in options.engines or ():
        check_names(name, "float32")
    for precision in options.precisions:
        check_names("auto", precision)
    lines = measure_prediction(
        options.model,
        videos=find_videos(options.input) if options.input else (),
        engines=options.engines,
        precisions=options.precisions,
        batch_sizes=options.batch_sizes,
        repeats=options.repeats,
    )
    _print(lines)


def _print(lines: Iterable[dict[str, Any]]) -> None:
    """Prints each line as soon as it has been measured."""
    for line in lines:
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    cli.run(main)
