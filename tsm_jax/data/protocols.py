"""How a clip is prepared for evaluation and prediction: which frames, which pixels.

A protocol shows V views of a clip: each of its clips in time, in each of its crops. The scores of a
clip are averaged over them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tsm_jax.data.sampling import (
    DENSE_CLIPS,
    dense_frames,
    middle_frame_of_each_segment,
    paddle_predict_frames,
    twice_frames,
)
from tsm_jax.data.transforms import (
    one_crop,
    resize_fixed_ratio,
    resize_short_side,
    resize_short_side_cv2,
    ten_crops,
    three_crops,
    three_crops_of_long_side,
)
from tsm_jax.errors import UserError
from tsm_jax.stored import between, check_fields, one_of

ChooseFrames = Callable[[int, int], np.ndarray]
Resize = Callable[[Sequence[np.ndarray], int], Sequence[np.ndarray]]
Crops = Callable[[Sequence[np.ndarray], int], list[np.ndarray]]

MIN_CROP_SIZE, MAX_CROP_SIZE = 32, 1024
MAX_SHORT_SIDE = 4096


@dataclass(frozen=True)
class _Clips:
    """Clips in time of a video: their number and, one after the other, their frames."""

    count: int
    choose: ChooseFrames


@dataclass(frozen=True)
class _Views:
    """A protocol without the sizes.

    Attributes:
        clips: in time.
        resize: frames to the short side.
        crops: of every clip.
        num_crops: how many that are.
        full_size: a crop is as large as the short side, not as in training.
        average_probabilities: scores are averaged after the softmax, not before.
    """

    clips: _Clips
    resize: Resize
    crops: Crops = one_crop
    num_crops: int = 1
    full_size: bool = False
    average_probabilities: bool = False


_UNIFORM = _Clips(1, middle_frame_of_each_segment)
_TWICE = _Clips(2, twice_frames)
_DENSE = _Clips(DENSE_CLIPS, dense_frames)
_MIT, _MM = resize_short_side, resize_short_side_cv2

# MIT: `test_models.py` with --dense_sample, --twice_sample, --test_crops and, for three crops,
# --full_res. mmaction2: the test pipelines of its TSM configs. PaddleVideo: PP-TSM's dense test.
_PROTOCOLS = {
    "test": _Views(_UNIFORM, _MIT),
    "paddle_predict": _Views(_Clips(1, paddle_predict_frames), resize_fixed_ratio),
    "paddle_dense": _Views(_DENSE, resize_fixed_ratio, three_crops, 3),
    "mit_twice": _Views(_TWICE, _MIT),
    "mit_dense": _Views(_DENSE, _MIT),
    "mit_three_crop": _Views(_UNIFORM, _MIT, three_crops, 3, full_size=True),
    "mit_twice_three_crop": _Views(_TWICE, _MIT, three_crops, 3, full_size=True),
    "mit_dense_three_crop": _Views(_DENSE, _MIT, three_crops, 3, full_size=True),
    "mit_ten_crop": _Views(_UNIFORM, _MIT, ten_crops, 10),
    "mmaction2_ten_crop": _Views(_UNIFORM, _MM, ten_crops, 10, average_probabilities=True),
    "mmaction2_dense_ten_crop": _Views(_DENSE, _MM, ten_crops, 10, average_probabilities=True),
    "mmaction2_three_crop": _Views(
        _UNIFORM, _MM, three_crops_of_long_side, 3, full_size=True, average_probabilities=True
    ),
    "mmaction2_twice_three_crop": _Views(
        _TWICE, _MM, three_crops_of_long_side, 3, full_size=True, average_probabilities=True
    ),
}
PROTOCOLS = tuple(_PROTOCOLS)


@dataclass(frozen=True)
class EvalProtocol:
    """The deterministic views of a clip.

    Attributes:
        name: one of `PROTOCOLS`.
        choose_frames: (number of frames, T) to the zero-based indices of all its clips in time,
            one after the other: [num_clips * T].
        resize: frames to `short_side`.
        short_side: pixels.
        crop_size: of a view, pixels.
        num_clips: in time.
        crops: of a clip.
        num_crops: how many that are.
        average_probabilities: scores are averaged after the softmax, not before.
    """

    name: str
    choose_frames: ChooseFrames
    resize: Resize
    short_side: int
    crop_size: int
    num_clips: int = 1
    crops: Crops = one_crop
    num_crops: int = 1
    average_probabilities: bool = False

    @property
    def num_views(self) -> int:
        """V."""
        return self.num_clips * self.num_crops

    def views(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """The frames of `choose_frames`, uint8 `[H, W, 3]` each, as uint8 `[V, T, S, S, 3]`."""
        crops = self.crops(self.resize(frames, self.short_side), self.crop_size)
        if self.num_views == 1:
            return crops[0][None]  # without a copy
        video = np.stack(crops, axis=1)  # [clips * T, crops, S, S, 3]
        num_segments = len(frames) // self.num_clips
        video = video.reshape(self.num_clips, num_segments, *video.shape[1:])
        return video.swapaxes(1, 2).reshape(self.num_views, num_segments, *video.shape[3:])


def eval_protocol(name: str, *, short_side: int, crop_size: int) -> EvalProtocol:
    """The protocol of that name.

    Args:
        name: `test`: the middle frame of each segment, the short side scaled with the picture's
            ratio kept (PaddleVideo's `--test` and validation, MIT's). `paddle_predict`: what
            PaddleVideo's `tools/predict.py` does instead, another frame rule and a picture of
            4:3 whatever its shape was. The others show several views, as their names say.
        short_side: pixels.
        crop_size: pixels; some protocols take the short side in its place.

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
    views = _PROTOCOLS[name]
    return EvalProtocol(
        name,
        views.clips.choose,
        views.resize,
        short_side,
        short_side if views.full_size else crop_size,
        views.clips.count,
        views.crops,
        views.num_crops,
        views.average_probabilities,
    )


@dataclass(frozen=True)
class Preprocessing:
    """Pixels, as in `config.data`, and the protocol the network was validated with.

    Raises:
        UserError: a value is of another type, not one of its choices or out of range.
    """

    crop_size: int = field(default=224, metadata=between(MIN_CROP_SIZE, MAX_CROP_SIZE))
    short_side: int = field(default=256, metadata=between(MIN_CROP_SIZE, MAX_SHORT_SIDE))
    protocol: str = field(default="test", metadata=one_of(PROTOCOLS))

    def __post_init__(self):
        check_fields(self)
        if self.short_side < self.crop_size:
            raise UserError(
                f"preprocessing.short_side is {self.short_side}: it must be at least"
                f" preprocessing.crop_size ({self.crop_size})"
            )


def protocol_of(preprocessing: Preprocessing, name: str | None = None) -> EvalProtocol:
    """The views that a network is shown: its own protocol, or the one of that name."""
    return eval_protocol(
        name or preprocessing.protocol,
        short_side=preprocessing.short_side,
        crop_size=preprocessing.crop_size,
    )
