"""Where clips come from: a source knows its labels and reads chosen frames of its i-th clip.

Each source but these two is in a module of its own (`frames`, `packed`), loaded where it is used.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import av
import numpy as np
from av.container import InputContainer

from tsm_jax.data.decode import decode_frames, open_video
from tsm_jax.data.lists import ListSource
from tsm_jax.data.protocols import MAX_FRAME_RATE
from tsm_jax.data.remote import local_copy
from tsm_jax.data.sampling import spread_frames
from tsm_jax.errors import UnreadableClipError

_TIMED_VIDEOS = 32  # only what stands before their frames is read

# From the number of frames that a clip has to the zero-based indices of those to read.
ChooseFrames = Callable[[int], np.ndarray]


class Source(Protocol):
    """Random access to clips. Reading is safe from several threads."""

    def __len__(self) -> int: ...

    def label(self, index: int) -> int: ...

    def name(self, index: int) -> str:
        """Path of clip `index`, for messages."""
        ...

    def read(self, index: int, choose: ChooseFrames) -> Sequence[np.ndarray]:
        """The frames of clip `index` that `choose` picks.

        `choose` may be called more than once and must answer the same.

        Returns:
            T frames, uint8 `[H, W, 3]`, RGB.

        Raises:
            UnreadableClipError: names the file.
        """
        ...


class VideoSource(ListSource):
    """Video files."""

    def read(self, index: int, choose: ChooseFrames) -> Sequence[np.ndarray]:
        with local_copy(self.entries[index].path) as path:
            return decode_frames(path, choose)


@dataclass(frozen=True)
class SyntheticSource:
    """Random pixels, the same for every clip: to measure everything but reading."""

    clips: int
    num_classes: int
    height: int = 256
    width: int = 340
    num_frames: int = 300

    def __len__(self) -> int:
        return self.clips

    def label(self, index: int) -> int:
        return index % self.num_classes

    def name(self, index: int) -> str:
        return f"synthetic clip {index}"

    def read(self, index: int, choose: ChooseFrames) -> Sequence[np.ndarray]:
        count = len(choose(self.num_frames))
        shape = (self.height, self.width, 3)
        frame = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return [frame] * count


def measure_frame_rate(source: Source, num_segments: int) -> float:
    """Frames per second that a network sees in training, three digits: T over the median duration
    of the videos; 0 where the source does not know times, as images in folders do not."""
    if not isinstance(source, VideoSource) or not len(source):
        return 0.0
    chosen = spread_frames(len(source), min(_TIMED_VIDEOS, len(source)))
    seconds = [known for i in chosen if (known := _duration(source.name(int(i))))]
    if not seconds:
        return 0.0
    return min(float(f"{num_segments / statistics.median(seconds):.3g}"), MAX_FRAME_RATE)


def _duration(path: str) -> float:
    """Seconds of a video by what its container says; 0 if that is nothing, or it cannot be read."""
    try:
        with local_copy(path) as local, open_video(local) as stream:
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            assert isinstance(stream.container, InputContainer)
            return (stream.container.duration or 0) / av.time_base
    except UnreadableClipError:  # training or evaluation will say so
        return 0.0
