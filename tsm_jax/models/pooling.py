"""The ResNet stem's max pooling, with a gradient that only reads and adds.

XLA's own gradient is a select-and-scatter: slow on a GPU, several passes with indices on a CPU.
Here the forward pass keeps for each window which of its nine pixels was the largest (one byte), and
the backward pass gives each pixel its share of the at most four windows that it lies in.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def spatial_axes(data_format: str) -> tuple[int, int]:
    """The axes of height and width of an image tensor of rank 4."""
    return (1, 2) if data_format == "NHWC" else (2, 3)


def max_pool_3x3_stride_2(x: jax.Array, data_format: str) -> jax.Array:
    """3x3 windows, stride 2, padded by 1 with minus infinity: H rows become ceil(H / 2).

    The gradient of a window goes to its largest pixel, to the first (row by row) of equal ones, as
    in PyTorch and Paddle.

    Args:
        x: `[M, H, W, C]`, or `[M, C, H, W]` with `data_format="NCHW"`.
        data_format: where the channels are.
    """
    rows, columns = spatial_axes(data_format)
    return _max_pool(x, rows, (x.shape[rows], x.shape[columns]))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x: jax.Array, rows: int, size: tuple[int, int]) -> jax.Array:
    """`rows` is the axis of H, with W behind it; `size` is (H, W)."""
    del size
    window, strides, padding = [1] * 4, [1] * 4, [(0, 0)] * 4
    for axis in (rows, rows + 1):
        window[axis], strides[axis], padding[axis] = 3, 2, (1, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)


def _forward(x: jax.Array, rows: int, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """The maximum, and where it is: 0 to 8 in reading order."""
    padding = [(1, 1, 0) if axis in (rows, rows + 1) else (0, 0, 0) for axis in range(4)]
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), padding)
    pixels = [_every_second(padded, rows, (i, j), size) for i in range(3) for j in range(3)]
    maximum, where = pixels[0], jnp.zeros(pixels[0].shape, jnp.uint8)
    for index, pixel in enumerate(pixels[1:], start=1):
        larger = (pixel > maximum) | jnp.isnan(pixel)  # a NaN must not get lost
        maximum = jnp.where(larger, pixel, maximum)
        where = jnp.where(larger, jnp.uint8(index), where)
    return maximum, where


def _every_second(
    padded: jax.Array, rows: int, start: tuple[int, int], size: tuple[int, int]
) -> jax.Array:
    """One pixel of each window: every second row and column from `start` on."""
    starts, limits, strides = [0] * 4, list(padded.shape), [1] * 4
    for axis, first, pixels in zip((rows, rows + 1), start, size, strict=True):
        windows = (pixels + 1) // 2
        starts[axis], limits[axis], strides[axis] = first, first + 2 * windows - 1, 2
    return lax.slice(padded, starts, limits, strides)


def _backward(
    rows: int, size: tuple[int, int], where: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array]:
    """Window w reads pixels 2w - 1, 2w and 2w + 1 of an axis.

    So an even pixel lies in the middle of one window, and an odd one at the end of a window and at
    the start of the next.
    """
    columns = rows + 1

    def share(i: int, j: int) -> jax.Array:
        return jnp.where(where == 3 * i + j, cotangent, 0).astype(jnp.float32)

    def along_columns(i: int) -> jax.Array:
        even, odd = share(i, 1), share(i, 2) + _of_next_window(share(i, 0), columns)
        return _interleave(even, odd, columns)

    even, odd = along_columns(1), along_columns(2) + _of_next_window(along_columns(0), rows)
    gradient = _interleave(even, odd, rows)
    for axis, pixels in zip((rows, columns), size, strict=True):
        gradient = lax.slice_in_dim(gradient, 0, pixels, axis=axis)
    return (gradient.astype(cotangent.dtype),)


def _of_next_window(shares: jax.Array, axis: int) -> jax.Array:
    """At w what stands at w + 1; zero at the end."""
    padding = [(0, 0, 0)] * 4
    padding[axis] = (-1, 1, 0)
    return lax.pad(shares, jnp.float32(0), padding)


def _interleave(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis=axis + 1).reshape(shape)


_max_pool.defvjp(_forward, _backward)
