"""Sources read chosen frames of the i-th clip; readers turn clips into batch elements.

Every random draw is keyed by (seed, epoch, clip), never taken from a running stream: a clip looks
the same in the same epoch, whatever thread, worker, host or restart reads it.

The sources of image folders and of packed clips have modules of their own (`frames`, `packed`),
which are imported where they are used.
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

# Maps a clip's number of frames to the zero-based indices of the frames to read.
ChooseFrames = Callable[[int], np.ndarray]

# Keys of a clip's random draws, so that none depends on the others.
_FRAMES, _CROP, _FLIP, _REPLACEMENT, _COLOR = range(5)

MAX_REPLACEMENTS = 20
_TIMED_VIDEOS = 32  # whose containers are opened to read the duration

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Random access to clips. Reading is thread-safe."""

    def __len__(self) -> int: ...

    def label(self, index: int) -> int: ...

    def name(self, index: int) -> str:
        """Returns the path of clip `index`, for messages."""
        ...

    def read(self, index: int, choose: ChooseFrames) -> Sequence[np.ndarray]:
        """Reads the frames of clip `index` that `choose` picks.

        `choose` may be called more than once and must return equal indices for equal numbers.

        Returns:
            T frames, uint8 `[H, W, 3]`, RGB.

        Raises:
            UnreadableClipError: The clip cannot be read; the message names the file.
        """
        ...


class VideoSource(ListSource):
    """Video files."""

    def read(self, index: int, choose: ChooseFrames) -> Sequence[np.ndarray]:
        with local_copy(self.entries[index].path) as path:
            return decode_frames(path, choose)


@dataclass(frozen=True)
class SyntheticSource:
    """Random pixels, the same for every clip, to measure everything except reading."""

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
    """Reads augmented training clips: random frames, a random crop, and a random flip.

    Attributes:
        crop_size: Side of the resulting frames in pixels.
        flip: Whether to mirror half of the clips.
        skip_unreadable: Replace an unreadable clip with another one, chosen by (seed, epoch, clip)
            alone, instead of raising.
        mirrored_labels: The label of each class's mirrored clips; None to keep labels.
        crop, sampling: Keys of `TRAINING_CROPS` and `TRAINING`.
        crop_scales: Sides of a crop, as fractions of the short side.
        color_jitter: Strength of `jitter_color`; 0 for none.
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
        """Shape of a clip's video: (1, T, S, S, 3), one view."""
        return (1, self.num_segments, self.crop_size, self.crop_size, 3)

    def read(self, index: int, epoch: int, out: np.ndarray | None = None) -> Element:
        """Reads a clip's batch element, whose `index` is that of the clip actually read.

        Args:
            out: Receives the video: uint8 of `shape`, C-contiguous; None for a new array.

        Raises:
            UserError: Neither the clip nor any replacement could be read.
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
            _log.warning("unreadable clip replaced by %s: %s", self.source.name(other), error)
            return element
        raise UserError(
            f"{error}; {MAX_REPLACEMENTS} attempts to replace it with another clip failed, too:"
            " check the training list"
        )

    def _rng(self, epoch: int, index: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch, index, purpose))


@dataclass(frozen=True)
class EvalClips:
    """Reads clips according to a protocol; nothing is random and no clip is ever replaced.

    Attributes:
        skip_unreadable: Let an unreadable clip count for nothing, instead of raising. Only for
            training clips, because every clip of an evaluation counts.
    """

    source: Source
    num_segments: int
    protocol: EvalProtocol
    skip_unreadable: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a clip's video: (V, T, S, S, 3)."""
        size = self.protocol.crop_size
        return (self.protocol.num_views, self.num_segments, size, size, 3)

    def read(self, index: int, out: np.ndarray | None = None) -> Element:
        """Reads a clip's batch element; `out` is as for `TrainClips.read`.

        Raises:
            UnreadableClipError: The clip cannot be read; the message names the file.
        """
        try:
            return self.element(self.read_frames(index), index, out)
        except UnreadableClipError:
            if not self.skip_unreadable:
                raise
            return self.padding(out)

    def read_frames(self, index: int) -> Sequence[np.ndarray]:
        """Reads the frames that the protocol chooses, unchanged."""

        def choose(num_frames: int) -> np.ndarray:
            return self.protocol.choose_frames(num_frames, self.num_segments)

        keep_freed_memory()
        return self.source.read(index, choose)

    def element(
        self, frames: Sequence[np.ndarray], index: int, out: np.ndarray | None = None
    ) -> Element:
        """Makes the batch element of frames that have been read."""
        video = self.protocol.views(frames, self.source.name(index))
        return _element(video, self.source.label(index), index, out)

    def padding(self, out: np.ndarray | None = None) -> Element:
        """Returns an element that pads the last batch and counts for nothing."""
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
    """Returns the frames per second that a network sees in training, to three digits.

    This is T over the median duration of (a sample of) the videos, or 0 if the source has no
    durations, such as folders of images.
    """
    if not isinstance(source, VideoSource) or not len(source):
        return 0.0
    chosen = spread_frames(len(source), min(_TIMED_VIDEOS, len(source)))
    seconds = [known for i in chosen if (known := _duration(source.name(int(i))))]
    if not seconds:
        return 0.0
    return min(float(f"{num_segments / statistics.median(seconds):.3g}"), MAX_FRAME_RATE)


def _duration(path: str) -> float:
    """Returns a video's seconds according to its container; 0 if unknown or unreadable."""
    try:
        with local_copy(path) as local, open_video(local) as stream:
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            assert isinstance(stream.container, InputContainer)
            return (stream.container.duration or 0) / av.time_base
    except UnreadableClipError:  # training or evaluation will report it
        return 0.0
