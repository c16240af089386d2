"""Depthwise convolution: every channel has its own kernel.

XLA's CPU has no kernel for it and takes 4 to 60 times as long as PyTorch; for an NVIDIA GPU it
had not compiled cuDNN's gradients after 50 s. On both it is written as one shifted product
per value of the kernel, which become one loop, with its gradients written by hand. On other
devices, and in an ONNX graph, it is an ordinary convolution with groups.
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
    """Cross-correlation with `(k - 1) // 2` zeros around the image, in the dtype of `x`.

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
    """The images' gradient is the correlation of the dilated `dy` with the kernel turned round."""
    size, padding = len(kernel), len(kernel) // 2
    # Behind the last place that a stride reaches there may be more rows and columns.
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
    """Each value of the kernel times the pixels that it meets, in the kernel's dtype."""
    if stride == 1:  # otherwise the loop would ask of each pixel whether it is padding
        padded = lax.optimization_barrier(padded)
    products = [
        window.astype(kernel.dtype) * kernel[i, j, 0]
        for (i, j), window in _windows(padded, len(kernel), stride)
    ]
    return sum(products[1:], products[0])


def _windows(
    padded: jax.Array, size: int, stride: int
) -> Iterator[tuple[tuple[int, int], jax.Array]]:
    """Each place of a kernel, and the pixels that it meets."""
    images, rows, columns, channels = padded.shape
    for i, j in itertools.product(range(size), repeat=2):
        end = images, rows - size + i + 1, columns - size + j + 1, channels
        yield (i, j), lax.slice(padded, (0, i, j, 0), end, (1, stride, stride, 1))


def _kernel_sums(
    padded: jax.Array, dy: jax.Array, size: int, stride: int, dtype: jnp.dtype
) -> jax.Array:
    """A sum over all pixels for each value of the kernel."""
    sums = [
        (window.astype(dtype) * dy.astype(dtype)).sum((0, 1, 2))
        for _, window in _windows(padded, size, stride)
    ]
    return jnp.stack(sums).reshape(size, size, 1, -1)


def _kernel_gradient(
    padded: jax.Array, dy: jax.Array, size: int, stride: int, dtype: jnp.dtype
) -> jax.Array:
    """As `_kernel_sums`, row by row, so that what is added up stays in the cache; over images only
    in the end, so that devices with images of their own add up once."""
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
