"""The temporal shift: a 2-D network sees its neighbours in time at the cost of a copy.

Of every frame's C channels a first fold takes its values from one neighbouring frame and a second
fold from the other; the rest stays. A convolution behind it then mixes three frames.

    frame        t-1     t     t+1
    fold 1        └──────▶            from the past      (`past_first`)
    fold 2                ◀──────┘    from the future (`past_only` has none)
    the rest              │           unchanged

With `past_only` a frame needs nothing of later ones, so a network can follow a stream: within
`streaming` the shift takes the frame before from a state instead of from its clip.

Lin, Gan, Han: "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019, sections 3
and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tsm_jax.errors import UserError

Shift = Callable[[jax.Array], jax.Array]

# By how many frames each fold is moved, by direction.
_STEPS = {"past_first": (1, -1), "future_first": (-1, 1), "past_only": (1,)}

# The state before and after a frame of a stream, see `streaming`.
_State = tuple[Sequence[jax.Array] | None, list[jax.Array]]
_stream: ContextVar[_State | None] = ContextVar("stream", default=None)


def fold_sizes(channels: int, num_segments: int, fraction: str) -> tuple[int, int]:
    """Where the first and the second fold end: channels `[0, a)` and `[a, b)` move.

    A `fraction` of `1/8` is MIT's and mmaction2's `shift_div=8`, whatever the number of segments
    is. `1/num_segments` is PaddleVideo's rule; its kernel multiplies in float32 and truncates, so
    that the two folds may differ by a channel (T = 3, C = 64: 21 and 42).
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
        fraction: see `fold_sizes`.
        direction: `past_first` (PaddleVideo: fold 1 of frame t comes from frame t-1),
            `future_first` (MIT, mmaction2: from t+1), `past_only` (fold 1 from t-1 and no fold 2),
            or `none` (the tensor as it is: TSN). Weights trained for one are silently wrong for
            another.
    """
    if direction == "none":
        return x
    folds = fold_sizes(x.shape[-1], num_segments, fraction)
    if (stream := _stream.get()) is not None:
        if direction != "past_only":
            raise ValueError(f"a stream has no frames from the future: {direction} needs them")
        before, after = stream
        own, rest = jnp.split(x, folds[:1], axis=-1)
        past = jnp.zeros_like(own) if before is None else before[len(after)]
        after.append(own)
        return jnp.concatenate([past, rest], axis=-1)
    clips = x.reshape(-1, num_segments, *x.shape[1:])  # [N, T, H, W, C]
    steps = _STEPS[direction]
    *moving, rest = jnp.split(clips, folds[: len(steps)], axis=-1)
    moved = [_move_in_time(fold, step) for fold, step in zip(moving, steps, strict=True)]
    return jnp.concatenate([*moved, rest], axis=-1).reshape(x.shape)


def _move_in_time(clips: jax.Array, step: int) -> jax.Array:
    """Frame t of the result is frame `t - step`, or zeros where there is none."""
    padding = [(0, 0, 0)] * clips.ndim
    padding[1] = (step, -step, 0)
    return lax.pad(clips, jnp.zeros((), clips.dtype), padding)


def only_in_every_block(shift_every: int, network: str) -> None:
    """Raises a UserError unless `shift_every` is 1: no other rule is known for that network."""
    if shift_every != 1:
        raise UserError(
            f"config.model.shift_every is {shift_every}: only ResNets can shift in every second"
            f" block, {network} cannot; set it to 1"
        )


def unshifted(x: jax.Array) -> jax.Array:
    """The shift of a block that has none."""
    return x


@contextmanager
def streaming(state: Sequence[jax.Array] | None) -> Iterator[list[jax.Array]]:
    """Within it `temporal_shift` gets the next frame of N streams, `[N, H, W, C]`, not clips.

    Args:
        state: what the frame before has left: of each shift, in the order of the network, the first
            fold of its input, `[N, H, W, fold]`. None before the first frame: zeros, as at the
            start of a clip.

    Yields:
        The state for the frame after, which is complete at the end.
    """
    after: list[jax.Array] = []
    token = _stream.set((state, after))  # of this thread: others may trace clips meanwhile
    try:
        yield after
    finally:
        _stream.reset(token)
    if state is not None and len(after) != len(state):
        raise ValueError(f"the state has {len(state)} tensors, the network {len(after)}")
