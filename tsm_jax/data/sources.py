"""Where clips come from: a source knows its labels and reads chosen frames of its i-th clip.

Each source but these two is in a module of its own (`frames`, `packed`), loaded where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tsm_jax.data.decode import decode_frames
from tsm_jax.data.lists import ListSource

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
        return decode_frames(self.entries[index].path, choose)


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
