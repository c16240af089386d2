"""Times of prediction: decoding, and the network by engine, precision and batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tsm_jax.deploy.artifact import Artifact, read_artifact
from tsm_jax.deploy.engine import FILES, installed, open_engine
from tsm_jax.deploy.predictor import Predictor
from tsm_jax.errors import UserError

Line = dict[str, Any]


def benchmark_prediction(
    folder: str,
    *,
    videos: Sequence[str] = (),
    engines: Sequence[str] | None = None,
    precisions: Sequence[str] = ("float32",),
    batch_sizes: Sequence[int] = (1,),
    repeats: int = 10,
) -> Iterator[Line]:
    """Measures an exported folder; other work on the machine disturbs all of it alike.

    Every combination is warmed up, then all are timed in turn, `repeats` times over, so that a
    ratio of two of them holds on a busy machine, too.

    Args:
        folder: exported.
        videos: to time reading on; none for the network alone.
        engines: to time; None for all that are installed.
        precisions: to time, where the engine and the folder have them.
        batch_sizes: clips at once.
        repeats: rounds.

    Yields:
        For JSON: a `read` line (milliseconds a video, one thread) if there are videos, then a
        `network` line per combination (milliseconds a clip), the fastest first.

    Raises:
        UserError: it is no exported folder, or nothing can be timed.
    """
    artifact = read_artifact(folder)
    runs = _runs(artifact, engines, precisions, batch_sizes)
    if not runs:
        raise UserError(f"nothing of {folder} can be timed: no engine with that precision is here")
    if videos:
        yield _time_reading(folder, videos)
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
    size, rng = artifact.preprocessing.crop_size, np.random.default_rng(0)
    runs = []
    for (name, precision), file in FILES.items():
        wanted = installed(name) if engines is None else name in engines
        if not wanted or precision not in precisions or file not in artifact.hashes:
            continue
        engine = open_engine(artifact, name, precision)
        about = {"engine": name, "precision": precision, "device": engine.device}
        for batch_size in batch_sizes:
            shape = (batch_size, artifact.num_segments, size, size, 3)
            video = rng.integers(0, 256, shape, np.uint8)
            run = _of(engine.logits, video)
            runs.append(({**about, "batch_size": batch_size}, run))
    return runs


def _of(logits: Callable[[np.ndarray], np.ndarray], video: np.ndarray) -> Callable[[], object]:
    return lambda: logits(video)


def _time_reading(folder: str, videos: Sequence[str]) -> Line:
    predictor = Predictor.load(folder)
    predictor.read(videos[0])
    times = [_seconds(lambda video=video: predictor.read(video)) for video in videos]
    return {"kind": "read", "videos": len(videos), **_summary(times, 1)}


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _summary(seconds: Sequence[float], clips: int) -> Line:
    """Milliseconds a clip: the median and the extremes."""
    per_clip = [1000 * value / clips for value in seconds]
    return {
        "milliseconds": round(statistics.median(per_clip), 2),
        "fastest": round(min(per_clip), 2),
        "slowest": round(max(per_clip), 2),
    }
