"""Reads every clip of a list as training would, and reports the unreadable ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np

from tsm_jax.data.frames import FrameSource
from tsm_jax.data.lists import FRAME_TEMPLATE, ClipEntry, exists
from tsm_jax.data.prepare.jobs import JobFailure, run_jobs
from tsm_jax.data.sources import Source, VideoSource
from tsm_jax.terminal import progress

OK, SHORT, BROKEN, MISSING = VERDICTS = ("ok", "short", "broken", "missing")


@dataclass(frozen=True)
class Verdict:
    """The result for one clip.

    Attributes:
        kind: One of `VERDICTS`; a `short` clip is readable, but has fewer frames than segments.
        detail: The reason, in one line.
    """

    path: str
    kind: str
    detail: str = ""

    @property
    def is_usable(self) -> bool:
        return self.kind in (OK, SHORT)


def check_entries(
    entries: Sequence[ClipEntry],
    source: str,
    *,
    num_segments: int = 8,
    template: str = FRAME_TEMPLATE,
    **jobs: Any,
) -> list[Verdict]:
    """Reads `num_segments` frames of every clip, including the first and the last one.

    Args:
        source: `videos` or `frames`.
        jobs: Arguments `processes`, `seconds` and `ray` of `run_jobs`.
    """
    check = partial(_check, source=source, num_segments=num_segments, template=template)
    verdicts = []
    with closing(run_jobs(check, entries, path_of=attrgetter("path"), **jobs)) as results:
        for entry, result in progress(results, "check", len(entries)):
            if isinstance(result, JobFailure):
                kind = BROKEN if exists(entry.path) else MISSING
                verdicts.append(Verdict(entry.path, kind, result.reason))
            else:
                verdicts.append(result)
    return verdicts


def _check(entry: ClipEntry, *, source: str, num_segments: int, template: str) -> Verdict:
    length = 0

    def choose(num_frames: int) -> np.ndarray:
        nonlocal length
        length = num_frames
        return np.linspace(0, num_frames - 1, num_segments).astype(np.int64)

    clip: Source = FrameSource([entry], template) if source == "frames" else VideoSource([entry])
    clip.read(0, choose)
    if length < num_segments:
        return Verdict(entry.path, SHORT, f"{length} frames, fewer than {num_segments} segments")
    return Verdict(entry.path, OK)
