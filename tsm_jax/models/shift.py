"""The temporal shift: a 2-D network sees its neighbours in time at the cost of a copy.

Of every frame's C channels a first fold takes its values from one neighbouring frame and a second
fold from the other; the rest stays. A convolution behind it then mixes three frames.

    frame        t-1     t     t+1
    fold 1        └──────▶            from the past      (`past_first`)
    fold 2                ◀──────┘    from the future
    the rest              │           unchanged

Lin, Gan, Han: "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019, section 3.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Shift = Callable[[jax.Array], jax.Array]


def fold_sizes(channels: int, num_segments: int, fraction: str) -> tuple[int, int]:
    """Where the first and the second fold end: channels `[0, a)` and `[a, b)` move.

    Args:
        channels: C, the channels of the tensor that is shifted.
        num_segments: T, the frames of a clip.
        fraction: `1/8` is MIT's and mmaction2's `shift_div=8`, whatever T is. `1/num_segments` is
            PaddleVideo's rule; its kernel multiplies in float32 and truncates, so that the two
            folds may differ by a channel (T = 3, C = 64: 21 and 42).

    Returns:
        `(a, b)` with `0 <= a <= b <= channels`.
    """
    if fraction == "1/8":
        fold = channels // 8
        return fold, 2 * fold
    ratio = np.float32(1.0) / np.float32(num_segments)
    return int(np.float32(channels) * ratio), int(np.float32(2 * channels) * ratio)


def temporal_shift(
    x: jax.Array,
    num_segments: int,
    *,
    fraction: str = "1/8",
    direction: str = "past_first",
) -> jax.Array:
    """Moves two folds of the channels by one frame, one each way; the ends are filled with zeros.

    Args:
        x: `[N*T, H, W, C]`, any dtype. Clips never mix: each has zeros at both of its ends.
        num_segments: T.
        fraction: the share of the channels that moves in one direction, see `fold_sizes`.
        direction: `past_first` (PaddleVideo: fold 1 of frame t comes from frame t-1),
            `future_first` (MIT, mmaction2: from t+1), or `none` (the tensor as it is: TSN).
            Weights trained for one are silently wrong for the other.

    Returns:
        A tensor of the shape and dtype of `x`.
    """
    if direction == "none":
        return x
    clips = x.reshape(-1, num_segments, *x.shape[1:])  # [N, T, H, W, C]
    folds = fold_sizes(x.shape[-1], num_segments, fraction)
    first, second, rest = jnp.split(clips, folds, axis=-1)
    step = 1 if direction == "past_first" else -1
    shifted = [_move_in_time(first, step), _move_in_time(second, -step), rest]
    return jnp.concatenate(shifted, axis=-1).reshape(x.shape)


def _move_in_time(clips: jax.Array, step: int) -> jax.Array:
    """Frame t of the result is frame `t - step`, or zeros where there is none."""
    padding = [(0, 0, 0)] * clips.ndim
    padding[1] = (step, -step, 0)
    return lax.pad(clips, jnp.zeros((), clips.dtype), padding)


def unshifted(x: jax.Array) -> jax.Array:
    """The shift of a block that has none."""
    return x
