"""Serves a model over HTTP: recognizes the actions in the videos that clients send.

python -m tsm_jax.serve --model inference/TSM
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from tsm_jax import cli
from tsm_jax.errors import UserError
from tsm_jax.files import read_text
from tsm_jax.host import usable_cores
from tsm_jax.serving.limits import Limits

_KB, _MB = 1 << 10, 1 << 20
_SHORTEST_TOKEN = 16


class _Limit(NamedTuple):
    """An option that sets a field of `Limits`, in multiples of `unit`, and shares its default."""

    field: str
    least: float
    most: float
    about: str
    unit: int = 1


_LIMITS = {
    "max_upload_mb": _Limit("upload_bytes", 1, 1 << 20, "MB per upload", _MB),
    "max_storage_mb": _Limit(
        "storage_bytes", 1, 1 << 30, "MB of all uploads on disk together", _MB
    ),
    "min_upload_kb": _Limit(
        "upload_rate", 1, 1 << 20, "minimum speed of an upload, in KB per second", _KB
    ),
    "idle_seconds": _Limit(
        "idle_seconds",
        0.5,
        3600,
        "seconds without headers or a frame, or before --min_upload_kb applies",
    ),
    "max_seconds": _Limit("video_seconds", 1, 1e6, "duration of a video in seconds"),
    "max_pixels": _Limit(
        "video_pixels", 1, 1 << 30, "width x height of a video or of a frame of a stream"
    ),
    "decode_seconds": _Limit(
        "decode_seconds", 1, 3600, "seconds to decode a video, of waiting and of processor time"
    ),
    "decode_memory_mb": _Limit(
        "decode_bytes", 64, 1 << 20, "MB of memory per decoding process", _MB
    ),
    "decoders": _Limit("decoders", 1, 256, "decoding processes (one per core)"),
    "max_requests": _Limit("requests", 1, 1 << 16, "videos waiting for an answer at once"),
    "max_streams": _Limit("streams", 1, 1 << 16, "streams followed at once"),
    "max_frame_kb": _Limit("frame_bytes", 1, 1 << 20, "KB per frame of a stream", _KB),
    "max_connections": _Limit("connections", 1, 1 << 16, "connections open at once"),
    "drain_seconds": _Limit(
        "drain_seconds", 1, 3600, "seconds to finish accepted requests when told to stop"
    ),
}


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    _check(options)
    try:
        from tsm_jax.serving.app import Settings
        from tsm_jax.serving.server import serve
    except ImportError as error:
        raise UserError(f"serving needs {error.name}: pip install 'tsm-jax[serve]'") from error
    options.decoders = options.decoders or usable_cores()
    settings = Settings(
        options.model,
        options.engine,
        options.precision,
        options.protocol,
        options.max_batch,
        options.max_wait_ms / 1000,
        None if options.token_file is None else _token(options.token_file),
        tuple(options.cors_origin),
        Limits(
            **{each.field: getattr(options, name) * each.unit for name, each in _LIMITS.items()}
        ),
    )
    serve(settings, options.host, options.port)


def _token(path: str) -> str:
    token = read_text(path, "the token", limit=4096).strip()
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or len(token.split()) != 1:
        raise UserError(
            f"{path} must contain one word of at least {_SHORTEST_TOKEN} ASCII characters, such as"
            " the output of openssl rand -hex 32"
        )
    return token


def _check(options: argparse.Namespace) -> None:
    ranges: dict[str, tuple[float, float]] = {
        "port": (0, 65535),
        "max_batch": (1, 1024),
        "max_wait_ms": (0, 10_000),
    }
    ranges |= {name: (limit.least, limit.most) for name, limit in _LIMITS.items()}
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} is {value}: it must be from {least} to {most:g}")
    if options.max_storage_mb < options.max_upload_mb:
        raise UserError("--max_storage_mb must be at least --max_upload_mb")


def _parser() -> cli.Parser:
    parser = cli.Parser(
        "serve",
        description=(
            "Serves a model over HTTP: POST a video to /v1/predict or, if the model was exported"
            " for streams, send frames to WS /v1/stream. Open / for a page to try it. See"
            " docs/serving.md."
        ),
        example="python -m tsm_jax.serve --model inference/TSM --port 8000",
    )
    add = parser.add_argument
    add("--model", metavar="DIR", required=True, help="an exported folder")
    add("--host", metavar="ADDRESS", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    add("--port", metavar="N", type=int, default=8000, help="port, or 0 for any free one (8000)")
    add("--token_file", metavar="FILE", help="contains the bearer token that requests need")
    about = "origin whose pages may use the service; may be repeated"
    add("--cors_origin", metavar="URL", action="append", default=[], help=about)
    add("--engine", metavar="NAME", default="auto", help="as for predict (auto)")
    about = "float32, bfloat16 or int8 (float32)"
    add("--precision", metavar="NAME", default="float32", help=about)
    add("--protocol", metavar="NAME", help="which views of a video are averaged (the model's own)")
    about = "clips computed together (1 on CPU, 16 elsewhere)"
    add("--max_batch", metavar="N", type=int, help=about)
    add = parser.add_argument_group("limits").add_argument
    about = "milliseconds that a batch waits for videos still being decoded (2)"
    add("--max_wait_ms", metavar="N", type=float, default=2, help=about)
    for name, limit in _LIMITS.items():
        kind, default = float if "seconds" in name else int, None
        if name != "decoders":
            default = getattr(Limits, limit.field) // limit.unit
        about = limit.about if default is None else f"{limit.about} ({default})"
        add(f"--{name}", metavar="N", type=kind, default=default, help=about)
    return parser


if __name__ == "__main__":
    cli.run(main)
