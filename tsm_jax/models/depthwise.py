"""Depthwise convolution: every channel has its own kernel.

XLA has no CPU kernel for it and takes 4 to 60 times as long as PyTorch; on an NVIDIA GPU, it had
not finished compiling cuDNN's gradients after 50 s. On both, the convolution is written as a sum of
shifted products, one per kernel place, which XLA fuses into one loop, with hand-written gradients.
On other devices and in ONNX graphs, it is an ordinary convolution with groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from tsm_jax.models.convolve import by_platform, convolve


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Cross-correlation of images padded with `(k - 1) // 2` zeros, in the dtype of `x`.

    Args:
        x: `[M, H, W, C]`.
        kernel: `[k, k, 1, C]`, float32, k odd.
    """
    by_products = partial(_by_products, stride=stride)
    gradients = partial(_gradients_by_products, stride=stride)
    return by_platform(
        x,
        kernel,
        cpu=by_products,
        cuda=by_products,
        default=partial(convolve, stride=stride, groups=x.shape[-1]),
        gradients={
            "cpu": partial(gradients, kernel_gradient=_kernel_gradient),
            "cuda": partial(gradients, kernel_gradient=_kernel_sums),
        },
    )


def _by_products(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    return _sum_of_products(_pad(x, len(kernel) // 2), kernel, stride).astype(x.dtype)


def _gradients_by_products(
    x: jax.Array,
    kernel: jax.Array,
    dy: jax.Array,
    *,
    stride: int,
    kernel_gradient: Callable[..., jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Returns the gradients of images and kernel.

    That of the images is the correlation of the dilated `dy` with the kernel rotated by 180
    degrees.
    """
    size, padding = len(kernel), len(kernel) // 2
    # There may be rows and columns after the last one that the stride reaches.
    rest = [(pixels - 1) % stride for pixels in x.shape[1:3]]
    dilated = lax.pad(
        dy,
        jnp.zeros((), dy.dtype),
        [(0, 0, 0)] + [(padding, padding + more, stride - 1) for more in rest] + [(0, 0, 0)],
    )
    dx = _sum_of_products(dilated, kernel[::-1, ::-1], 1).astype(x.dtype)
    return dx, kernel_gradient(_pad(x, padding), dy, size, stride, kernel.dtype)


def _pad(x: jax.Array, padding: int) -> jax.Array:
    ends = (padding, padding, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), ends, ends, (0, 0, 0)))


def _sum_of_products(padded: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Sums each kernel value times the pixels under it, in the dtype of the kernel."""
    if stride == 1:  # without it, the fused loop would check each pixel for being padding
        padded = lax.optimization_barrier(padded)
    products = [
        window.astype(kernel.dtype) * kernel[i, j, 0]
        for (i, j), window in _windows(padded, len(kernel), stride)
    ]
    return sum(products[1:], products[0])


def _windows(
    padded: jax.Array, size: int, stride: int
) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Yields each place of the kernel with the pixels under it."""
    images, rows, columns, channels = padded.shape
    for i, j in itertools.product(range(size), repeat=2):
        end = images, rows - size + i + 1, columns - size + j + 1, channels
        yield (i, j), lax.slice(padded, (0, i, j, 0), end, (1, stride, stride, 1))


def _kernel_sums(
    padded: jax.Array, dy: jax.Array, size: int, stride: int, dtype: jnp.dtype
) -> jax.Array:
    """Returns the gradient of the kernel as one sum over all pixels per kernel value."""
    sums = [
        (window.astype(dtype) * dy.astype(dtype)).sum((0, 1, 2))
        for _, window in _windows(padded, size, stride)
    ]
    return jnp.stack(sums).reshape(size, size, 1, -1)


def _kernel_gradient(
    padded: jax.Array, dy: jax.Array, size: int, stride: int, dtype: jnp.dtype
) -> jax.Array:
    """Returns the same as `_kernel_sums`, computed row by row so that the sums stay in the cache.

    The sum over images comes last, so devices that hold different images sum across devices once.
    """
    padded = lax.optimization_barrier(padded)
    images, rows, columns, channels = dy.shape
    places = list(itertools.product(range(size), repeat=2))

    def add_row(row: jax.Array, sums: list[jax.Array]) -> list[jax.Array]:
        window = lax.dynamic_slice_in_dim(padded, row * stride, size, 1).astype(dtype)
        cotangent = lax.dynamic_index_in_dim(dy, row, 1, keepdims=False).astype(dtype)
        return [
            total + window[:, i, j : j + (columns - 1) * stride + 1 : stride] * cotangent
            for total, (i, j) in zip(sums, places, strict=True)
        ]

    zeros = [jnp.zeros((images, columns, channels), dtype) for _ in places]
    sums = [lax.optimization_barrier(total) for total in lax.fori_loop(0, rows, add_row, zeros)]
    gradient = jnp.stack([total.sum(1) for total in sums]).sum(1)
    return gradient.reshape(size, size, 1, channels)
