"""Times of prediction: decoding, and the network by engine, precision and batch."""

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
    """Measures an exported folder; other work on the machine disturbs all of it alike.

    Every combination, of all installed engines if `engines` is None, is warmed up, then all are
    timed in turn, `repeats` times over, so that a
    ratio of two of them holds on a busy machine, too.

    Yields:
        For JSON: a `read` line (milliseconds a video, one thread) if there are videos, then a
        `network` line per combination (milliseconds a clip), the fastest first.

    Raises:
        UserError: it is not an exported folder, or nothing can be timed.
    """
    runs = _runs(read_artifact(folder), engines, precisions, batch_sizes)
    if not runs:
        raise UserError(f"nothing of {folder} can be timed: no engine with that precision is here")
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
    """What to time, each with what it is."""
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
    """Milliseconds a clip: the median and the extremes."""
    per_clip = [1000 * value / clips for value in seconds]
    return {
        "milliseconds": round(statistics.median(per_clip), 2),
        "fastest": round(min(per_clip), 2),
        "slowest": round(max(per_clip), 2),
    }
