"""Measures prediction: decoding, and the network by engine, precision and batch size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from tsm_jax.assemble.load import load
from tsm_jax.deploy.artifact import Artifact, read_artifact
from tsm_jax.deploy.engine import FILES, installed, open_engine
from tsm_jax.errors import UserError

Line = dict[str, Any]


def measure_prediction(
    folder: str,
    *,
    videos: Sequence[str] = (),
    engines: Sequence[str] | None = None,
    precisions: Sequence[str] = ("float32",),
    batch_sizes: Sequence[int] = (1,),
    repeats: int = 10,
) -> Iterator[Line]:
    """Measures an exported folder.

    All combinations (with all installed engines if `engines` is None) are warmed up and then timed
    in turn, `repeats` times over. Other work on the machine therefore slows all of them alike, and
    the ratio of two combinations is valid on a busy machine, too.

    Yields:
        JSON-compatible lines: if there are videos, a `read` line (milliseconds per video, one
        thread); then a `network` line per combination (milliseconds per clip), the fastest first.

    Raises:
        UserError: `folder` is not an exported folder, or nothing can be timed.
    """
    runs = _runs(read_artifact(folder), engines, precisions, batch_sizes)
    if not runs:
        raise UserError(
            f"nothing in {folder} can be timed: it has no graph for these engines and precisions,"
            " or the engine is not installed"
        )
    if videos:
        predictor = load(folder)
        predictor.read(videos[0])
        reading = [_seconds(partial(predictor.read, video)) for video in videos]
        yield {"kind": "read", "videos": len(videos), **_summary(reading, 1)}
    times: list[list[float]] = [[] for _ in runs]
    for _, run in runs:
        run()
    for _ in range(repeats):
        for measured, (_, run) in zip(times, runs, strict=True):
            measured.append(_seconds(run))
    lines = [
        {"kind": "network", **about, **_summary(measured, about["batch_size"])}
        for measured, (about, _) in zip(times, runs, strict=True)
    ]
    yield from sorted(lines, key=lambda line: line["milliseconds"])


def _runs(
    artifact: Artifact,
    engines: Sequence[str] | None,
    precisions: Sequence[str],
    batch_sizes: Sequence[int],
) -> list[tuple[Line, Callable[[], object]]]:
    """Returns the calls to time, each with its description."""
    rng, runs = np.random.default_rng(0), []
    for (name, precision), file in FILES.items():
        wanted = installed(name) if engines is None else name in engines
        if wanted and precision in precisions and file in artifact.hashes:
            engine = open_engine(artifact, name, precision)
            about = {"engine": name, "precision": precision, "device": engine.device}
            for clips in batch_sizes:
                video = rng.integers(0, 256, (clips, *artifact.clip_shape), np.uint8)
                runs.append(({**about, "batch_size": clips}, partial(engine.logits, video)))
    return runs


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _summary(seconds: Sequence[float], clips: int) -> Line:
    """Returns milliseconds per clip: the median and the extremes."""
    per_clip = [1000 * value / clips for value in seconds]
    return {
        "milliseconds": round(statistics.median(per_clip), 2),
        "fastest": round(min(per_clip), 2),
        "slowest": round(max(per_clip), 2),
    }
