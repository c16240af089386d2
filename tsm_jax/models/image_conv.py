"""The first convolution of a network, which reads images of three channels at stride 2.

A GPU's matrix units multiply eight or more channels at once. With three, cuDNN pads the images, and
most of its products are with zeros. There blocks of 2x2 pixels become channels before
(`space to depth`): a 7x7 kernel at stride 2 over 3 channels is a 4x4 one at stride 1 over 12, the
same products in another order. On other devices it is an ordinary convolution.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from tsm_jax.models.convolve import convolve

_CHANNELS = 16  # of a block: 12 and zeros


_conv = partial(convolve, stride=2)


@jax.custom_vjp
def image_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Cross-correlation at stride 2 with zeros around the image, in the dtype of `x`.

    Args:
        x: `[M, H, W, 3]`.
        kernel: `[k, k, 3, C]`, float32, k odd; the padding is `(k - 1) // 2`.

    Returns:
        `[M, ceil(H / 2), ceil(W / 2), C]`.
    """
    return lax.platform_dependent(x, kernel, cuda=_of_blocks, default=_conv)


def _forward(x: jax.Array, kernel: jax.Array):
    return image_conv(x, kernel), (x, kernel)


def _backward(residuals: tuple[jax.Array, jax.Array], dy: jax.Array):
    return lax.platform_dependent(
        *residuals,
        dy,
        cuda=lambda x, kernel, dy: jax.vjp(_of_blocks, x, kernel)[1](dy),
        default=lambda x, kernel, dy: jax.vjp(_conv, x, kernel)[1](dy),
    )


image_conv.defvjp(_forward, _backward)


def _of_blocks(x: jax.Array, kernel: jax.Array) -> jax.Array:
    images, height, width, channels = x.shape
    if height % 2 or width % 2:
        return _conv(x, kernel)
    # The kernel gets a row and a column of zeros, at the end whose pixels begin a block.
    padding = (len(kernel) - 1) // 2
    first = padding % 2
    kernel = jnp.pad(kernel, (*((first, 1 - first),) * 2, (0, 0), (0, 0)))
    half = len(kernel) // 2
    blocks = x.reshape(images, height // 2, 2, width // 2, 2, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(images, height // 2, width // 2, -1)
    kernel = kernel.reshape(half, 2, half, 2, channels, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(half, half, 4 * channels, -1)
    more = (0, _CHANNELS - 4 * channels)
    before = (padding + first) // 2
    return convolve(
        jnp.pad(blocks, (*((0, 0),) * 3, more)),
        jnp.pad(kernel, (*((0, 0),) * 2, more, (0, 0))),
        padding=(before, half - 1 - before),
    )
