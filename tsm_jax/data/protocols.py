"""How a clip is prepared for evaluation and prediction: which frames, which pixels.

A protocol shows V views of a clip: each of its clips in time, in each of its crops. The scores of a
clip are averaged over them.
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
# Of a resized frame: a narrow strip would become a picture of gigabytes.
_MAX_PIXELS = 64e6


@dataclass(frozen=True)
class EvalProtocol:
    """The deterministic views of a clip.

    Attributes:
        choose_frames: (number of frames, T) to the zero-based indices of all its clips in time,
            one after the other: [num_clips * T].
        short_side, crop_size: pixels.
        average_probabilities: scores are averaged after the softmax, not before.
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
        """V."""
        return self.num_clips * self.num_crops

    def check_labels(self, names: Sequence[str]) -> None:
        """Raises a UserError if it mirrors clips although classes are told by left and right."""
        if self.crops is transforms.ten_crops and (wrong := transforms.with_direction(names)):
            raise UserError(
                f"the protocol {self.name} mirrors half of the views, which makes"
                f" '{printable(wrong[0])}' another class: choose one without mirrored views, such"
                " as mit_twice_three_crop"
            )

    def resized(self, frames: Sequence[np.ndarray], name: str = "the clip") -> Sequence[np.ndarray]:
        """Frames uint8 `[H, W, 3]` as they are cropped.

        Raises:
            UnreadableClipError: the frames of the clip `name` are too narrow.
        """
        short, long = sorted(frames[0].shape[:2])
        if self.short_side**2 * long > _MAX_PIXELS * short:
            raise UnreadableClipError(
                f"{name}: frames of {long}x{short} are too narrow to be resized to a short side of"
                f" {self.short_side} px: leave it out"
            )
        return self.resize(frames, self.short_side)

    def views(self, frames: Sequence[np.ndarray], name: str = "the clip") -> np.ndarray:
        """The frames of `choose_frames`, uint8 `[H, W, 3]` each, as uint8 `[V, T, S, S, 3]`; raises
        as `resized`."""
        crops = self.crops(self.resized(frames, name), self.crop_size)
        if self.num_views == 1:
            return crops[0][None]  # without a copy
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
_FULL = {"full_size": True}  # a crop is as large as the short side

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
    """The protocol of that name.

    `test`: the middle frame of each segment, the short side scaled with the picture's ratio kept
    (PaddleVideo's `--test` and validation, MIT's). `paddle_predict`: what PaddleVideo's
    `tools/predict.py` does instead, another frame rule and a picture of 4:3 whatever its shape was.
    The others show several views, as their names say; some take the short side as crop size.

    Raises:
        UserError: there is no such protocol, or the crop is larger than the short side.
    """
    if name not in _PROTOCOLS:
        raise UserError(f"there is no protocol {name!r}: choose one of {', '.join(PROTOCOLS)}")
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
    """Pixels and time, as in `config.data`, and the protocol the network was validated with.

    `frame_rate` is how many frames of a second the network sees, see
    `tsm_jax.data.sources.measure_frame_rate`; 0 where that is not known.

    Raises:
        UserError: a value is of another type, not one of its choices or out of range.
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
    """The views that a network is shown: its own protocol, or the one of that name."""
    return eval_protocol(
        name or preprocessing.protocol,
        short_side=preprocessing.short_side,
        crop_size=preprocessing.crop_size,
    )
