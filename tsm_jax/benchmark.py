"""Measures parts of the program on a recipe.

python -m tsm_jax.benchmark data --config configs/tsm_k400_packed.py
"""

from __future__ import annotations

from collections.abc import Sequence

from tsm_jax import cli


def main(arguments: Sequence[str]) -> None:
    commands = {"data": data}
    parser = cli.Parser(
        "benchmark",
        description="Measures a part of the program; `benchmark COMMAND --help` tells more.",
        example="python -m tsm_jax.benchmark data --help",
    )
    parser.add_argument("command", metavar="COMMAND", choices=commands, help=", ".join(commands))
    commands[parser.parse_args(arguments[:1]).command](arguments[1:])


def data(arguments: Sequence[str]) -> None:
    """Reading, decoding, transforming, batching."""
    parser = cli.Parser(
        "benchmark data",
        description=(
            "Prints a line of JSON for each of: reading and decoding the training clips of the"
            " recipe on one core, the same with augmentation, and the whole pipeline with every"
            " number of --threads and --workers."
        ),
        example=(
            "python -m tsm_jax.benchmark data --config configs/tsm_k400_packed.py --threads 1 2 4"
        ),
    )
    parser.add_recipe(required=True)
    parser.add_argument(
        "--clips", metavar="N", type=int, default=256, help="to measure on (default 256)"
    )
    parser.add_argument("--threads", type=int, nargs="+", help="by default config.data.threads")
    parser.add_argument("--workers", type=int, nargs="+", help="by default config.data.workers")
    options, config = parser.parse_with_recipe(arguments)
    assert config is not None
    if options.clips < 1:
        parser.error("--clips must be at least 1")
    from tsm_jax.data_benchmark import run_data_benchmark

    run_data_benchmark(config, options.clips, threads=options.threads, workers=options.workers)


if __name__ == "__main__":
    cli.run(main)
