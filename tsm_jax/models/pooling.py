"""Average pooling of ResNet-vd; max pooling of the ResNet stem with a gradient that only gathers.

XLA's gradient of max pooling is a select-and-scatter, which is slow on a GPU and takes several
passes with indices on a CPU. Here the forward pass stores which of the nine pixels of each window
was the largest (one byte). The backward pass gives each pixel the sum of its gradients from the
windows that contain it, at most four.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_ROWS, _COLUMNS = 1, 2  # axes of `[M, H, W, C]`


def average_pool_2x2(x: jax.Array) -> jax.Array:
    """Averages 2x2 windows at stride 2, ignoring missing pixels: H rows become ceil(H / 2).

    Args:
        x: `[M, H, W, C]`.
    """
    height, width = x.shape[1:3]
    padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    sums = lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), padding)
    rows, columns = (
        np.minimum(2, pixels - 2 * np.arange((pixels + 1) // 2)) for pixels in (height, width)
    )
    if height % 2 or width % 2:
        return sums / jnp.asarray(rows[:, None, None] * columns[:, None], x.dtype)
    return sums / 4


def max_pool_3x3_stride_2(x: jax.Array) -> jax.Array:
    """Takes maxima of 3x3 windows at stride 2, padded by 1 with -inf: H rows become ceil(H / 2).

    The gradient of a window goes to its largest pixel and, among equal ones, to the first in row
    order, as in PyTorch and Paddle.

    Args:
        x: `[M, H, W, C]`.
    """
    return _max_pool(x, x.shape[1:3])


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    del size
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def _forward(x: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Returns the maximum of each window and its place, 0 to 8 in row order."""
    height, width = ((pixels + 1) // 2 for pixels in size)
    nothing = jnp.array(-jnp.inf, x.dtype)
    padded = lax.pad(x, nothing, ((0, 0, 0), (1, 1, 0), (1, 1, 0), (0, 0, 0)))
    pixels = [
        padded[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
        for i in range(3)
        for j in range(3)
    ]
    maximum, where = pixels[0], jnp.zeros(pixels[0].shape, jnp.uint8)
    for index, pixel in enumerate(pixels[1:], start=1):
        larger = (pixel > maximum) | jnp.isnan(pixel)  # propagate NaN
        maximum = jnp.where(larger, pixel, maximum)
        where = jnp.where(larger, jnp.uint8(index), where)
    return maximum, where


def _backward(size: tuple[int, int], where: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    """Collects the gradient of each pixel from the windows that contain it.

    Along an axis, window w reads pixels 2w - 1, 2w and 2w + 1. An even pixel is therefore in the
    middle of one window, an odd one at the end of a window and at the start of the next.
    """
    dtype = jnp.promote_types(cotangent.dtype, jnp.float32)

    def share(i: int, j: int) -> jax.Array:
        return jnp.where(where == 3 * i + j, cotangent, 0).astype(dtype)

    def along_columns(i: int) -> jax.Array:
        even, odd = share(i, 1), share(i, 2) + _of_next_window(share(i, 0), _COLUMNS)
        return _interleave(even, odd, _COLUMNS)

    even, odd = along_columns(1), along_columns(2) + _of_next_window(along_columns(0), _ROWS)
    height, width = size
    gradient = _interleave(even, odd, _ROWS)[:, :height, :width]
    return (gradient.astype(cotangent.dtype),)


def _of_next_window(shares: jax.Array, axis: int) -> jax.Array:
    """Moves each value from w + 1 to w along an axis; the last one becomes zero."""
    padding = [(0, 0, 0)] * 4
    padding[axis] = (-1, 1, 0)
    return lax.pad(shares, jnp.zeros((), shares.dtype), padding)


def _interleave(even: jax.Array, odd: jax.Array, axis: int) -> jax.Array:
    shape = list(even.shape)
    shape[axis] *= 2
    return jnp.stack([even, odd], axis=axis + 1).reshape(shape)


_max_pool.defvjp(_forward, _backward)
