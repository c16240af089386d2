"""Convolutions, each in the form that the current device computes fastest.

Images are `[M, H, W, C]`, kernels float32 `[k, k, C, D]` with odd k. Images are padded with
`(k - 1) // 2` zeros on each side; results have the dtype of the images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

FLOAT32 = jnp.dtype(jnp.float32)

_BLOCK_CHANNELS = 16  # of a block of 2x2 pixels: 12 values and 4 zeros

_Conv = Callable[[jax.Array, jax.Array], jax.Array]
_Gradients = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def precision_of(dtype: jnp.dtype) -> lax.Precision | None:
    """Returns the precision for products of this dtype, so that float32 means float32 everywhere.

    By default, a GPU multiplies float32 in TF32 and a TPU in one bfloat16 pass, which leaves three
    digits of a logit.
    """
    return lax.Precision.HIGHEST if dtype == FLOAT32 else None


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    groups: int = 1,
) -> jax.Array:
    """Cross-correlation with XLA's own convolution.

    Args:
        x: `[M, H, W, C]`.
        kernel: `[k, k, C / groups, D]`.
        padding: zeros before and after both rows and columns, if not `(k - 1) // 2` each.
        groups: feature groups; as many groups as features make a depthwise convolution.
    """
    half = (len(kernel) - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride, stride),
        padding=(padding or (half, half),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=precision_of(x.dtype),
    )


def by_platform(
    x: jax.Array,
    kernel: jax.Array,
    *,
    default: _Conv,
    gradients: Mapping[str, _Gradients] | None = None,
    **ways: _Conv,
) -> jax.Array:
    """Computes a convolution and its gradients with a platform-specific implementation.

    Differentiating `platform_dependent` directly would keep the residuals of all implementations.

    Args:
        default: implementation for platforms without one of their own.
        gradients: by platform, a function of x, kernel and cotangent that replaces automatic
            differentiation.
        ways: implementations by platform.
    """

    @jax.custom_vjp
    def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.platform_dependent(x, kernel, default=default, **ways)

    def forward(x: jax.Array, kernel: jax.Array):
        return conv(x, kernel), (x, kernel)

    def automatic(way: _Conv) -> _Gradients:
        return lambda x, kernel, dy: jax.vjp(way, x, kernel)[1](dy)

    def backward(residuals: tuple[jax.Array, jax.Array], dy: jax.Array):
        special = {platform: automatic(way) for platform, way in ways.items()} | dict(
            gradients or {}
        )
        return lax.platform_dependent(*residuals, dy, default=automatic(default), **special)

    conv.defvjp(forward, backward)
    return conv(x, kernel)


def image_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The first convolution of a network: three input channels, stride 2.

    The matrix units of a GPU multiply at least eight channels at once. With three channels, cuDNN
    pads the images, and most of the products are with zeros. On an NVIDIA GPU, blocks of 2x2 pixels
    are therefore moved into channels first (`space to depth`): a 7x7 kernel at stride 2 over 3
    channels becomes a 4x4 kernel at stride 1 over 12, with the same products in another order.
    """
    return by_platform(x, kernel, default=partial(convolve, stride=2), cuda=_of_blocks)


def _of_blocks(x: jax.Array, kernel: jax.Array) -> jax.Array:
    images, height, width, channels = x.shape
    if height % 2 or width % 2:
        return convolve(x, kernel, stride=2)
    # Add a row and a column of zeros to the kernel, on the side that aligns it with the blocks.
    padding = (len(kernel) - 1) // 2
    first = padding % 2
    kernel = jnp.pad(kernel, (*((first, 1 - first),) * 2, (0, 0), (0, 0)))
    half = len(kernel) // 2
    blocks = x.reshape(images, height // 2, 2, width // 2, 2, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(images, height // 2, width // 2, -1)
    kernel = kernel.reshape(half, 2, half, 2, channels, -1)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(half, half, 4 * channels, -1)
    more = (0, _BLOCK_CHANNELS - 4 * channels)
    before = (padding + first) // 2
    return convolve(
        jnp.pad(blocks, (*((0, 0),) * 3, more)),
        jnp.pad(kernel, (*((0, 0),) * 2, more, (0, 0))),
        padding=(before, half - 1 - before),
    )


def is_small(shape: tuple[int, ...], kernel_size: int, stride: int) -> bool:
    """Returns whether an output image has fewer pixels than the kernel has places.

    Args:
        shape: shape of the input, `[M, H, W, C]`.
    """
    return -(-shape[1] // stride) * -(-shape[2] // stride) < kernel_size**2


def small_image_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolution of images that are smaller than the kernel (see `is_small`).

    With clips of 33 to 64 pixels, the last stage of a ResNet has 2x2 pixels. XLA then swaps images
    and kernel, for which it has only a plain loop on a CPU: 7 of the 50 convolutions of the
    quickstart's training step took 58 % of its time. On a CPU, this function computes a matrix
    product instead. No operation is wasted: on 2x2 pixels, a 3x3 kernel connects every output pixel
    with every input pixel.
    """
    default, product = (partial(way, stride=stride) for way in (convolve, _product))
    return by_platform(x, kernel, default=default, cpu=product)


def _product(x: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    images, *pixels, channels = x.shape
    size, features = len(kernel), kernel.shape[-1]
    kernel = kernel.astype(x.dtype)

    def weights(*place: int) -> jax.Array:
        """Weights of all input pixels for an output pixel, `[H, W, C, D]`; 0 outside the kernel."""
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


def pointwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A 1x1 convolution, computed as a matrix product.

    Args:
        x: `[M, H, W, C]`.
        kernel: `[C, D]`.
    """
    if stride == 1:
        return _pointwise(x, kernel)

    def pixels(x: jax.Array) -> jax.Array:
        # Not `x[:, ::2, ::2]`, which becomes a gather if the number of images is symbolic.
        return lax.slice(x, (0,) * 4, x.shape, (1, stride, stride, 1))

    # Without the barrier, XLA's Triton product (at least in jaxlib 0.11.2) aborts the process.
    read = lax.platform_dependent(
        x, cuda=lambda x: lax.optimization_barrier(pixels(x)), default=pixels
    )
    return _pointwise(read, kernel)


@jax.custom_vjp
def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Matrix product with a hand-written gradient of the kernel.

    The gradient is computed in the memory order of the kernel; automatic differentiation computes
    its transpose, for which XLA copies the pixels first. It also stays float32, whereas the
    automatic one is rounded to the dtype of `x` before it is summed over devices.
    """
    return jnp.dot(x, kernel.astype(x.dtype), precision=precision_of(x.dtype))


def _pointwise_forward(x: jax.Array, kernel: jax.Array):
    return _pointwise(x, kernel), (x, kernel)


def _pointwise_backward(residuals: tuple[jax.Array, jax.Array], dy: jax.Array):
    x, kernel = residuals
    pixels, features = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    product = partial(lax.dot_general, precision=precision_of(x.dtype))
    dx = product(features, kernel.astype(x.dtype), (((1,), (1,)), ((), ())))
    kernel_gradient = product(
        pixels, features, (((0,), (0,)), ((), ())), preferred_element_type=kernel.dtype
    )
    return dx.reshape(x.shape), kernel_gradient


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)
