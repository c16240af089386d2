"""How a clip is prepared for evaluation and prediction: which frames, which pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tsm_jax.data.sampling import middle_frame_of_each_segment, paddle_predict_frames
from tsm_jax.data.transforms import center_crop, resize_fixed_ratio, resize_short_side
from tsm_jax.errors import UserError

Resize = Callable[[Sequence[np.ndarray], int], Sequence[np.ndarray]]


@dataclass(frozen=True)
class EvalProtocol:
    """One deterministic view of a clip.

    Attributes:
        name: `test` or `paddle_predict`.
        choose_frames: (number of frames, T) to T zero-based indices.
        resize: frames to `short_side`.
        short_side: pixels.
        crop_size: of the square cut from the centre, pixels.
    """

    name: str
    choose_frames: Callable[[int, int], np.ndarray]
    resize: Resize
    short_side: int
    crop_size: int

    def transform(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """T frames uint8 `[H, W, 3]` to uint8 `[T, S, S, 3]`, S = `crop_size`."""
        return center_crop(self.resize(frames, self.short_side), self.crop_size)


def eval_protocol(name: str, *, short_side: int, crop_size: int) -> EvalProtocol:
    """The protocol of that name.

    Args:
        name: `test`: the middle frame of each segment, the short side scaled with the picture's
            ratio kept (PaddleVideo's `--test` and validation, MIT's). `paddle_predict`: what
            PaddleVideo's `tools/predict.py` does instead, another frame rule and a picture of
            4:3 whatever its shape was.
        short_side: pixels.
        crop_size: pixels.

    Raises:
        UserError: there is no such protocol.
    """
    match name:
        case "test":
            choose, resize = middle_frame_of_each_segment, resize_short_side
        case "paddle_predict":
            choose, resize = paddle_predict_frames, resize_fixed_ratio
        case _:
            raise UserError(f"there is no protocol {name!r}: choose test or paddle_predict")
    return EvalProtocol(name, choose, resize, short_side, crop_size)
