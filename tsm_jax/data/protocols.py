"""How a clip is prepared for evaluation and prediction: which frames, which pixels.

A protocol turns a clip into V views: every crop of every temporal clip. A clip's scores are the
averages over its views.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tsm_jax.data import sampling, transforms
from tsm_jax.errors import UnreadableClipError, UserError
from tsm_jax.files import between, check_fields, one_of, shown
from tsm_jax.terminal import printable

ChooseFrames = Callable[[int, int], np.ndarray]
Resize = Callable[[Sequence[np.ndarray], int], Sequence[np.ndarray]]
Crops = Callable[[Sequence[np.ndarray], int], list[np.ndarray]]

MIN_CROP_SIZE, MAX_CROP_SIZE = 32, 1024
MAX_SHORT_SIDE = 4096
MAX_FRAME_RATE = 1000
# Limit for resized frames: a narrow strip would become an image of gigabytes.
_MAX_PIXELS = 64e6


@dataclass(frozen=True)
class EvalProtocol:
    """The deterministic views of a clip.

    Attributes:
        choose_frames: Maps (number of frames, T) to the zero-based indices of all temporal clips,
            one after the other: [num_clips * T].
        short_side, crop_size: Pixels.
        num_clips: Temporal clips.
        average_probabilities: Whether scores are averaged after the softmax instead of before.
    """

    name: str
    choose_frames: ChooseFrames
    resize: Resize
    short_side: int
    crop_size: int
    num_clips: int = 1
    crops: Crops = transforms.one_crop
    num_crops: int = 1
    average_probabilities: bool = False

    @property
    def num_views(self) -> int:
        """The number of views, V."""
        return self.num_clips * self.num_crops

    def check_labels(self, names: Sequence[str]) -> None:
        """Raises a UserError if views are mirrored although class names tell left from right."""
        if self.crops is transforms.ten_crops and (wrong := transforms.with_direction(names)):
            raise UserError(
                f"the protocol {self.name} mirrors half of the views, which turns"
                f" '{printable(wrong[0])}' into another class: choose a protocol without mirrored"
                " views, such as mit_twice_three_crop"
            )

    def resized(self, frames: Sequence[np.ndarray], name: str = "the clip") -> Sequence[np.ndarray]:
        """Resizes frames, uint8 `[H, W, 3]` each, to the size that is cropped.

        Raises:
            UnreadableClipError: The frames of the clip `name` are too narrow.
        """
        short, long = sorted(frames[0].shape[:2])
        if self.short_side**2 * long > _MAX_PIXELS * short:
            raise UnreadableClipError(
                f"{name}: frames of {long}x{short} are too narrow to be resized to a short side of"
                f" {self.short_side} px: leave this clip out"
            )
        return self.resize(frames, self.short_side)

    def views(self, frames: Sequence[np.ndarray], name: str = "the clip") -> np.ndarray:
        """Turns the frames of `choose_frames` into views.

        Args:
            frames: uint8 `[H, W, 3]` each.
            name: Name of the clip, for error messages.

        Returns:
            uint8 `[V, T, S, S, 3]`.

        Raises:
            UnreadableClipError: The frames are too narrow.
        """
        crops = self.crops(self.resized(frames, name), self.crop_size)
        if self.num_views == 1:
            return crops[0][None]  # avoids a copy
        video = np.stack(crops, axis=1)  # [clips * T, crops, S, S, 3]
        num_segments = len(frames) // self.num_clips
        video = video.reshape(self.num_clips, num_segments, *video.shape[1:])
        return video.swapaxes(1, 2).reshape(self.num_views, num_segments, *video.shape[3:])


_MIDDLE = {"choose_frames": sampling.middle_frame_of_each_segment}
_PADDLE = {"choose_frames": sampling.paddle_predict_frames}
_TWICE = {"choose_frames": sampling.twice_frames, "num_clips": 2}
_DENSE = {"choose_frames": sampling.dense_frames, "num_clips": sampling.DENSE_CLIPS}
_KEEP_RATIO = {"resize": transforms.resize_short_side}
_FIXED_RATIO = {"resize": transforms.resize_fixed_ratio}
_MM = {"resize": transforms.resize_short_side_cv2, "average_probabilities": True}
_THREE = {"crops": transforms.three_crops, "num_crops": 3}
_THREE_OF_LONG_SIDE = {"crops": transforms.three_crops_of_long_side, "num_crops": 3}
_CENTRE = {"crops": transforms.truncated_center_crop}
_TEN = {"crops": transforms.ten_crops, "num_crops": 10}
_FULL = {"full_size": True}  # crops are as large as the short side

# MIT: `test_models.py` with --dense_sample, --twice_sample, --test_crops and, for three crops,
# --full_res. mmaction2: the test pipelines of its TSM configs. PaddleVideo: PP-TSM's dense test.
_PROTOCOLS: dict[str, dict[str, Any]] = {
    "test": _MIDDLE | _KEEP_RATIO,
    "paddle_predict": _PADDLE | _FIXED_RATIO,
    "paddle_dense": _DENSE | _FIXED_RATIO | _THREE,
    "mit_twice": _TWICE | _KEEP_RATIO,
    "mit_dense": _DENSE | _KEEP_RATIO,
    "mit_three_crop": _MIDDLE | _KEEP_RATIO | _THREE | _FULL,
    "mit_twice_three_crop": _TWICE | _KEEP_RATIO | _THREE | _FULL,
    "mit_dense_three_crop": _DENSE | _KEEP_RATIO | _THREE | _FULL,
    "mit_ten_crop": _MIDDLE | _KEEP_RATIO | _TEN,
    "mmaction2_center_crop": _MIDDLE | _MM | _CENTRE,
    "mmaction2_ten_crop": _MIDDLE | _MM | _TEN,
    "mmaction2_dense_ten_crop": _DENSE | _MM | _TEN,
    "mmaction2_dense_three_crop": _DENSE | _MM | _THREE_OF_LONG_SIDE | _FULL,
    "mmaction2_three_crop": _MIDDLE | _MM | _THREE_OF_LONG_SIDE | _FULL,
    "mmaction2_twice_three_crop": _TWICE | _MM | _THREE_OF_LONG_SIDE | _FULL,
}
PROTOCOLS = tuple(_PROTOCOLS)


def eval_protocol(name: str, *, short_side: int, crop_size: int) -> EvalProtocol:
    """Returns the protocol with this name.

    `test` takes the middle frame of each segment and scales the short side, keeping the aspect
    ratio (like PaddleVideo's `--test` and validation, and MIT's). `paddle_predict` is what
    PaddleVideo's `tools/predict.py` does instead: a different rule for frames, and images of 4:3
    whatever their shape. The names of the others describe their views; some use the short side as
    crop size.

    Raises:
        UserError: There is no such protocol, or the crop is larger than the short side.
    """
    if name not in _PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
    if not 1 <= crop_size <= short_side:
        raise UserError(
            f"cannot cut {crop_size} px out of frames with a short side of {short_side} px: correct"
            " crop_size or short_side"
        )
    views = dict(_PROTOCOLS[name])
    if views.pop("full_size", False):
        crop_size = short_side
    return EvalProtocol(name, short_side=short_side, crop_size=crop_size, **views)


@dataclass(frozen=True)
class Preprocessing:
    """Image sizes and frame rate, as in `config.data`, and the protocol used for validation.

    `frame_rate` is the number of frames that the network sees per second (see
    `tsm_jax.data.sources.measure_frame_rate`), or 0 if it is unknown.

    Raises:
        UserError: A value has the wrong type, is not one of the choices, or is out of range.
    """

    crop_size: int = field(default=224, metadata=between(MIN_CROP_SIZE, MAX_CROP_SIZE))
    short_side: int = field(default=256, metadata=between(MIN_CROP_SIZE, MAX_SHORT_SIDE))
    protocol: str = field(default="test", metadata=one_of(PROTOCOLS))
    frame_rate: float = 0.0

    def __post_init__(self):
        check_fields(self)
        if self.short_side < self.crop_size:
            raise UserError(
                f"preprocessing.short_side is {self.short_side}: it must be at least"
                f" preprocessing.crop_size ({self.crop_size})"
            )
        if type(self.frame_rate) not in (int, float) or not 0 <= self.frame_rate <= MAX_FRAME_RATE:
            raise UserError(
                f"preprocessing.frame_rate is {shown(self.frame_rate)}: it must be a number from 0"
                f" to {MAX_FRAME_RATE}"
            )


def protocol_of(preprocessing: Preprocessing, name: str | None = None) -> EvalProtocol:
    """Returns the network's own protocol, or the one called `name`."""
    return eval_protocol(
        name or preprocessing.protocol,
        short_side=preprocessing.short_side,
        crop_size=preprocessing.crop_size,
    )
