"""Answers HTTP with the actions in the videos that are sent to it.

python -m tsm_jax.serve --model inference/TSM
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsm_jax import cli
from tsm_jax.errors import UserError
from tsm_jax.files import read_text
from tsm_jax.host import usable_cores

if TYPE_CHECKING:
    from tsm_jax.serving.limits import Limits

_MB = 1 << 20
_SHORTEST_TOKEN = 16


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    _check(options)
    try:
        from tsm_jax.serving.app import Settings
        from tsm_jax.serving.limits import Limits
        from tsm_jax.serving.server import serve
    except ImportError as error:
        raise UserError(f"serving needs {error.name}: pip install 'tsm-jax[serve]'") from error
    settings = Settings(
        options.model,
        options.engine,
        options.precision,
        options.protocol,
        options.max_batch,
        options.max_wait_ms / 1000,
        None if options.token_file is None else _token(options.token_file),
        tuple(options.cors_origin),
        _limits(Limits, options),
    )
    serve(settings, options.host, options.port)


def _limits(limits: type[Limits], options: argparse.Namespace) -> Limits:
    return limits(
        upload_bytes=options.max_upload_mb * _MB,
        storage_bytes=options.max_storage_mb * _MB,
        upload_rate=options.min_upload_kb * 1024,
        idle_seconds=options.idle_seconds,
        video_seconds=options.max_seconds,
        video_pixels=options.max_pixels,
        decode_seconds=options.decode_seconds,
        decode_bytes=options.decode_memory_mb * _MB,
        decoders=options.decoders or usable_cores(),
        requests=options.max_requests,
        streams=options.max_streams,
        frame_bytes=options.max_frame_kb * 1024,
        connections=options.max_connections,
        drain_seconds=options.drain_seconds,
    )


def _token(path: str) -> str:
    token = read_text(path, "the token", limit=4096).strip()
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or len(token.split()) != 1:
        raise UserError(
            f"{path} must hold one word of at least {_SHORTEST_TOKEN} ASCII characters:"
            " openssl rand -hex 32"
        )
    return token


# Least and most.
_RANGES = {
    "port": (0, 65535),
    "max_batch": (1, 1024),
    "max_wait_ms": (0, 10_000),
    "max_upload_mb": (1, 1 << 20),
    "max_storage_mb": (1, 1 << 30),
    "min_upload_kb": (1, 1 << 20),
    "idle_seconds": (0.5, 3600),
    "max_seconds": (1, 1e6),
    "max_pixels": (1, 1 << 30),
    "decode_seconds": (1, 3600),
    "decode_memory_mb": (64, 1 << 20),
    "decoders": (1, 256),
    "max_requests": (1, 1 << 16),
    "max_streams": (1, 1 << 16),
    "max_frame_kb": (1, 1 << 20),
    "max_connections": (1, 1 << 16),
    "drain_seconds": (1, 3600),
}


def _check(options: argparse.Namespace) -> None:
    for name, (least, most) in _RANGES.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} is {value}: it must be from {least} to {most:g}")
    if options.max_storage_mb < options.max_upload_mb:
        raise UserError("--max_storage_mb must be at least --max_upload_mb")


def _parser() -> cli.Parser:
    parser = cli.Parser(
        "serve",
        description=(
            "Answers HTTP: POST /v1/predict with a video, or WS /v1/stream with the frames of a"
            " stream if the model is one, and a page to try it at /. See docs/serving.md."
        ),
        example="python -m tsm_jax.serve --model inference/TSM --port 8000",
    )
    add = parser.add_argument
    add("--model", metavar="DIR", required=True, help="an exported folder")
    add("--host", metavar="ADDRESS", default="127.0.0.1", help="to listen on (127.0.0.1)")
    add("--port", metavar="N", type=int, default=8000, help="0 for any that is free (8000)")
    add("--token_file", metavar="FILE", help="holds the bearer token that requests need")
    add(
        "--cors_origin",
        metavar="URL",
        action="append",
        default=[],
        help="lets pages of this origin use the service; may be repeated",
    )
    add("--engine", metavar="NAME", default="auto", help="as for predict (auto)")
    add(
        "--precision",
        metavar="NAME",
        default="float32",
        help="float32, bfloat16 or int8 (float32)",
    )
    add("--protocol", metavar="NAME", help="which views of a video are averaged (the model's own)")
    add(
        "--max_batch",
        metavar="N",
        type=int,
        help="clips that are computed together (1 on CPU, 16 elsewhere)",
    )
    _add_limits(parser)
    return parser


def _add_limits(parser: cli.Parser) -> None:
    limits = parser.add_argument_group("limits")

    def add(name: str, default: float | None, about: str) -> None:
        kind = float if "seconds" in name or name == "max_wait_ms" else int
        shown = f" ({default})" if default is not None else ""
        limits.add_argument(
            f"--{name}", metavar="N", type=kind, default=default, help=about + shown
        )

    add("max_wait_ms", 2, "milliseconds that a batch waits for videos being decoded")
    add("max_upload_mb", 256, "MB of an upload")
    add("max_storage_mb", 2048, "MB of all uploads on disk at once")
    add("min_upload_kb", 16, "KB a second that an upload has to come with")
    add("idle_seconds", 10, "without headers or a frame, or before an upload has that rate")
    add("max_seconds", 600, "length of a video")
    add("max_pixels", 4096 * 2304, "width x height of a video, or of a frame of a stream")
    add("decode_seconds", 60, "to decode a video, of time and of a processor")
    add("decode_memory_mb", 1024, "memory of a decoding process")
    add("decoders", None, "decoding processes (one per core)")
    add("max_requests", 64, "videos that wait for an answer at once")
    add("max_streams", 8, "followed at once")
    add("max_frame_kb", 2048, "KB of a frame of a stream")
    add("max_connections", 512, "open at once")
    add("drain_seconds", 30, "to finish what is running when told to stop")


if __name__ == "__main__":
    cli.run(main)
