"""The temporal shift: lets a 2-D network see neighbouring frames at the cost of a copy.

The channels of each frame are divided into two folds and a rest. The first fold is replaced by the
same channels of one neighbouring frame, the second fold by those of the other; the rest is kept.
The convolution that follows therefore mixes three frames, without any extra multiplications.

    frame        t-1     t     t+1
    fold 1        └──────▶            from the past      (`past_first`)
    fold 2                ◀──────┘    from the future    (absent with `past_only`)
    rest                  │           unchanged

With `past_only`, no frame depends on later ones, so the network can process a stream frame by
frame. Inside the context `streaming`, `temporal_shift` takes the previous frame from a state
instead of from the clip.

Reference:
    Lin, Gan, Han: "TSM: Temporal Shift Module for Efficient Video Understanding", ICCV 2019,
    sections 3 and 4.
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

# Direction to the number of frames by which each fold moves.
_STEPS = {"past_first": (1, -1), "future_first": (-1, 1), "past_only": (1,)}

# The state before a frame (None for the first one) and the state after it; see `streaming`.
_State = tuple[Sequence[jax.Array] | None, list[jax.Array]]
_stream: ContextVar[_State | None] = ContextVar("stream", default=None)


def fold_sizes(channels: int, num_segments: int, fraction: str) -> tuple[int, int]:
    """Returns where the folds end: `(a, b)` if channels `[0, a)` and `[a, b)` are shifted.

    Args:
        channels: C.
        num_segments: T.
        fraction: the share of the channels in each fold. `1/8` is the rule of MIT and mmaction2
            (`shift_div=8`) and ignores T. `1/num_segments` is PaddleVideo's rule. Its kernel
            multiplies in float32 and truncates, so the two folds may differ by one channel; this
            function does the same (T = 3, C = 64: a = 21, b = 42).
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
    """Shifts two folds of the channels by one frame, in opposite directions.

    Clips never mix: at both ends of a clip, the missing neighbour is replaced by zeros.

    Args:
        x: frames of N clips, `[N*T, H, W, C]`, any dtype. Inside `streaming`: one frame of each of
            N streams, `[N, H, W, C]`.
        num_segments: T.
        fraction: size of a fold; see `fold_sizes`.
        direction: where the folds of frame t come from. Weights trained with one direction load
            without an error into a network with another, but give wrong results.

            * `past_first`: fold 1 from t-1, fold 2 from t+1 (PaddleVideo).
            * `future_first`: fold 1 from t+1, fold 2 from t-1 (MIT, mmaction2).
            * `past_only`: fold 1 from t-1; there is no fold 2.
            * `none`: no shift (TSN).

    Returns:
        A tensor with the shape and dtype of `x`.

    Raises:
        ValueError: inside `streaming`, the direction needs future frames, or the state has too few
            tensors.
    """
    if direction == "none":
        return x
    folds = fold_sizes(x.shape[-1], num_segments, fraction)
    if (stream := _stream.get()) is not None:
        if direction != "past_only":
            raise ValueError(f"{direction} needs future frames, which a stream does not have")
        before, after = stream
        if before is not None and len(after) == len(before):
            raise ValueError(f"the state has {len(before)} tensors, but the network needs more")
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
    """Moves frames along axis 1: frame t of the result is frame `t - step`, or zeros."""
    padding = [(0, 0, 0)] * clips.ndim
    padding[1] = (step, -step, 0)
    return lax.pad(clips, jnp.zeros((), clips.dtype), padding)


def only_in_every_block(shift_every: int, network: str) -> None:
    """Raises a UserError unless `shift_every` is 1, the only rule known for this network."""
    if shift_every != 1:
        raise UserError(
            f"config.model.shift_every is {shift_every}: only ResNets can shift in every second"
            f" block, {network} cannot; set it to 1"
        )


def unshifted(x: jax.Array) -> jax.Array:
    """Returns `x` unchanged; takes the place of the shift in blocks without one."""
    return x


@contextmanager
def streaming(state: Sequence[jax.Array] | None) -> Iterator[list[jax.Array]]:
    """Makes `temporal_shift` process one frame of each of N streams instead of clips.

    Enter the context once per frame and run the network once inside it.

    Args:
        state: the state yielded for the previous frame: for each shift, in the order in which the
            network applies them, the first fold of its input, `[N, H, W, fold]`. None before the
            first frame, which stands for zeros, as at the start of a clip.

    Yields:
        The state for the next frame, complete when the context exits.

    Raises:
        ValueError: `state` has more tensors than the network has shifts.
    """
    after: list[jax.Array] = []
    # A context variable, because other threads may trace clips at the same time.
    token = _stream.set((state, after))
    try:
        yield after
    finally:
        _stream.reset(token)
    if state is not None and len(after) != len(state):
        raise ValueError(f"the state has {len(state)} tensors, but the network needs {len(after)}")
