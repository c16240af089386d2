"""Where clips come from: a source knows its labels and reads chosen frames of its i-th clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tsm_jax.data.decode import decode_frames
from tsm_jax.data.frames import load_frames
from tsm_jax.data.lists import ClipEntry

# From the number of frames that a clip has to the zero-based indices of those to read.
ChooseFrames = Callable[[int], np.ndarray]


class Source(Protocol):
    """Random access to clips. Reading is safe from several threads."""

    def __len__(self) -> int:
        """Number of clips."""
        ...

    def label(self, index: int) -> int:
        """Class of clip `index`."""
        ...

    def name(self, index: int) -> str:
        """Path of clip `index`, for messages."""
        ...

    def read(self, index: int, choose: ChooseFrames) -> Sequence[np.ndarray]:
        """Frames of clip `index`.

        Args:
            index: of the clip.
            choose: from the number of frames to the zero-based indices of those to read; it may
                be called more than once and must answer the same.

        Returns:
            T frames, uint8 `[H, W, 3]`, RGB.

        Raises:
            UnreadableClipError: names the file.
        """
        ...


@dataclass(frozen=True)
class VideoSource:
    """Video files."""

    entries: Sequence[ClipEntry]

    def __len__(self) -> int:
        return len(self.entries)

    def label(self, index: int) -> int:
        return self.entries[index].label

    def name(self, index: int) -> str:
        return self.entries[index].path

    def read(self, index: int, choose: ChooseFrames) -> Sequence[np.ndarray]:
        return decode_frames(self.entries[index].path, choose)


@dataclass(frozen=True)
class FrameSource:
    """Folders of numbered JPEG files."""

    entries: Sequence[ClipEntry]
    template: str

    def __len__(self) -> int:
        return len(self.entries)

    def label(self, index: int) -> int:
        return self.entries[index].label

    def name(self, index: int) -> str:
        return self.entries[index].path

    def read(self, index: int, choose: ChooseFrames) -> Sequence[np.ndarray]:
        entry = self.entries[index]
        assert entry.num_frames is not None, "a frame list gives the number of frames"
        return load_frames(entry.path, entry.num_frames, choose, template=self.template)


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
