"""Convolution of images that are smaller than its kernel.

The last stage of a ResNet has 2x2 pixels where its clips have 33 to 64. There XLA swaps images and
kernel, and has only a plain loop for that on a CPU: 7 of the 50 convolutions of the quickstart's
training step took 58 % of its time. On a CPU they are matrix products here. Over 2x2 pixels a 3x3
kernel joins every pixel of the result with every pixel of the image, so no operation is wasted.
"""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from tsm_jax.models.convolve import convolve
from tsm_jax.models.precision import precision_of


def is_small(shape: tuple[int, ...], kernel_size: int, stride: int) -> bool:
    """Whether the result for images `[M, H, W, C]` has fewer pixels than the kernel has values."""
    return -(-shape[1] // stride) * -(-shape[2] // stride) < kernel_size**2


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def small_image_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Cross-correlation with zeros around the image, in the dtype of `x`.

    Args:
        x: `[M, H, W, C]`.
        kernel: `[k, k, C, D]`, float32, k odd; the padding is `(k - 1) // 2`.
        stride: of rows and columns.

    Returns:
        `[M, ceil(H / stride), ceil(W / stride), D]`.
    """
    return lax.platform_dependent(
        x, kernel, cpu=partial(_product, stride=stride), default=partial(convolve, stride=stride)
    )


def _forward(x: jax.Array, kernel: jax.Array, stride: int):
    return small_image_conv(x, kernel, stride), (x, kernel)


def _backward(stride: int, residuals: tuple[jax.Array, jax.Array], dy: jax.Array):
    return lax.platform_dependent(
        *residuals,
        dy,
        cpu=lambda x, kernel, dy: jax.vjp(partial(_product, stride=stride), x, kernel)[1](dy),
        default=lambda x, kernel, dy: jax.vjp(partial(convolve, stride=stride), x, kernel)[1](dy),
    )


small_image_conv.defvjp(_forward, _backward)


def _product(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    images, *pixels, channels = x.shape
    size, features = len(kernel), kernel.shape[-1]
    kernel = kernel.astype(x.dtype)

    def weights(*place: int) -> jax.Array:
        """Of all pixels for one pixel of the result, `[H, W, C, D]`; zero where the kernel ends."""
        starts = [size // 2 - stride * index for index in place]
        ends = [(-s, s + length - size, 0) for s, length in zip(starts, pixels, strict=True)]
        return lax.pad(kernel, jnp.zeros((), x.dtype), (*ends, (0, 0, 0), (0, 0, 0)))

    rows, columns = (-(-length // stride) for length in pixels)
    places = itertools.product(range(rows), range(columns))
    matrix = jnp.stack([weights(*place) for place in places], axis=3)
    y = jnp.dot(
        x.reshape(images, pixels[0] * pixels[1] * channels),
        matrix.reshape(-1, rows * columns * features),
        precision=precision_of(x.dtype),
    )
    return y.reshape(images, rows, columns, features)
