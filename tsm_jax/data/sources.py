"""Clips: sources read chosen frames of the i-th one, readers make elements of batches of them.

Every random draw is addressed by (seed, epoch, clip), never taken from a running stream: the same
clip looks the same in the same epoch whatever thread, worker, host or restart reads it.

Sources of pictures and of packed clips are in modules of their own (`frames`, `packed`), loaded
where they are used.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import av
import numpy as np
from av.container import InputContainer

from tsm_jax.data.decode import decode_frames, open_video
from tsm_jax.data.lists import ListSource, local_copy
from tsm_jax.data.protocols import MAX_FRAME_RATE, EvalProtocol
from tsm_jax.data.sampling import MULTI_SCALES, TRAINING, TRAINING_CROPS, spread_frames
from tsm_jax.data.transforms import crop_resize_flip, jitter_color
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.host import keep_freed_memory

Element = dict[str, np.ndarray]

# From the number of frames that a clip has to the zero-based indices of those to read.
ChooseFrames = Callable[[int], np.ndarray]

# Purposes that a clip's randomness is drawn for, so that none depends on another's draws.
_FRAMES, _CROP, _FLIP, _REPLACEMENT, _COLOR = range(5)

MAX_REPLACEMENTS = 20
_TIMED_VIDEOS = 32  # only what stands before their frames is read

_log = logging.getLogger(__name__)


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
        shape = (self.height, self.width, 3)
        frame = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return [frame] * len(choose(self.num_frames))


@dataclass(frozen=True)
class TrainClips:
    """Reads augmented training clips: a random frame a segment, a random crop, flip of half.

    Attributes:
        crop_size: of the result, pixels.
        skip_unreadable: replace an unreadable clip by another one, chosen by (seed, epoch, clip)
            alone, instead of raising.
        mirrored_labels: for each class that of its mirrored clips; None to keep their labels.
        crop, sampling: names in `TRAINING_CROPS` and `TRAINING`.
        crop_scales: sides of a crop, of the short side.
        color_jitter: strength of `jitter_color`, 0 for none.
    """

    source: Source
    num_segments: int
    crop_size: int
    flip: bool
    seed: int
    skip_unreadable: bool = False
    mirrored_labels: Sequence[int] | None = None
    crop: str = "multi_scale"
    crop_scales: Sequence[float] = MULTI_SCALES
    color_jitter: float = 0.0
    sampling: str = "uniform"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a clip's video: (1, T, S, S, 3), one view."""
        return (1, self.num_segments, self.crop_size, self.crop_size, 3)

    def read(self, index: int, epoch: int, out: np.ndarray | None = None) -> Element:
        """The clip's batch element, whose `index` is that of the clip that was read.

        Args:
            out: uint8 of `shape`, C-contiguous, that receives the video; a new array if None.

        Raises:
            UserError: neither the clip nor any replacement could be read.
        """
        try:
            return self._read(index, epoch, out)
        except UnreadableClipError as error:
            if not self.skip_unreadable:
                raise UserError(
                    f"{error} (--config.data.on_error=skip trains without such clips)"
                ) from error
            return self._read_replacement(index, epoch, out, error)

    def _read(self, index: int, epoch: int, out: np.ndarray | None) -> Element:
        def choose(num_frames: int) -> np.ndarray:
            rng = self._rng(epoch, index, _FRAMES)
            return TRAINING[self.sampling](num_frames, self.num_segments, rng)

        keep_freed_memory()
        frames = self.source.read(index, choose)
        height, width = frames[0].shape[:2]
        crop_rng = self._rng(epoch, index, _CROP)
        draw_crop = TRAINING_CROPS[self.crop]
        crop = draw_crop(height, width, self.crop_size, crop_rng, self.crop_scales)
        flip = self.flip and self._rng(epoch, index, _FLIP).random() < 0.5
        if out is None:
            out = np.empty(self.shape, np.uint8)
        crop_resize_flip(frames, crop, self.crop_size, flip, out=out[0])
        if self.color_jitter:
            jitter_color(out[0], self.color_jitter, self._rng(epoch, index, _COLOR))
        label = self.source.label(index)
        if flip and self.mirrored_labels is not None:
            label = self.mirrored_labels[label]
        return _element(out, label, index)

    def _read_replacement(
        self, index: int, epoch: int, out: np.ndarray | None, error: UserError
    ) -> Element:
        rng = self._rng(epoch, index, _REPLACEMENT)
        for _ in range(MAX_REPLACEMENTS):
            other = int(rng.integers(len(self.source)))
            if other == index:
                continue
            try:
                element = self._read(other, epoch, out)
            except UnreadableClipError:
                continue
            _log.warning("skipped %s; %s takes its place", error, self.source.name(other))
            return element
        raise UserError(
            f"{error}; {MAX_REPLACEMENTS} others in its place could not be read either:"
            " check the training list"
        )

    def _rng(self, epoch: int, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch, index, purpose))


@dataclass(frozen=True)
class EvalClips:
    """Reads clips by a protocol; nothing is random and nothing is ever replaced.

    Attributes:
        skip_unreadable: let an unreadable clip count for nothing, instead of raising. Training
            clips only: every clip of an evaluation counts.
    """

    source: Source
    num_segments: int
    protocol: EvalProtocol
    skip_unreadable: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a clip's video: (V, T, S, S, 3)."""
        size = self.protocol.crop_size
        return (self.protocol.num_views, self.num_segments, size, size, 3)

    def read(self, index: int, out: np.ndarray | None = None) -> Element:
        """The clip's batch element; `out` as in `TrainClips.read`.

        Raises:
            UnreadableClipError: naming the file.
        """
        try:
            return self.element(self.read_frames(index), index, out)
        except UnreadableClipError:
            if not self.skip_unreadable:
                raise
            return self.padding(out)

    def read_frames(self, index: int) -> Sequence[np.ndarray]:
        """The frames that the protocol chooses, as they are in the clip."""

        def choose(num_frames: int) -> np.ndarray:
            return self.protocol.choose_frames(num_frames, self.num_segments)

        keep_freed_memory()
        return self.source.read(index, choose)

    def element(
        self, frames: Sequence[np.ndarray], index: int, out: np.ndarray | None = None
    ) -> Element:
        """The batch element of frames that were read."""
        video = self.protocol.views(frames, self.source.name(index))
        return _element(video, self.source.label(index), index, out)

    def padding(self, out: np.ndarray | None = None) -> Element:
        """An element that fills up the last batch and counts for nothing."""
        return _element(np.zeros(self.shape, np.uint8), 0, -1, out, counts=False)


def _element(
    video: np.ndarray, label: int, index: int, out: np.ndarray | None = None, *, counts: bool = True
) -> Element:
    if out is not None:
        out[...] = video
    return {
        "video": video if out is None else out,  # [V, T, H, W, 3]
        "label": np.array(label, np.int32),
        "mask": np.array(counts),
        "index": np.array(index, np.int64),
    }


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
