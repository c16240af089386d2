"""Convolutions, each written as the device at hand computes it best.

Images are `[M, H, W, C]`, kernels float32 `[k, k, C, D]` with k odd; around the images there are
`(k - 1) // 2` zeros, and results have the dtype of the images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

FLOAT32 = jnp.dtype(jnp.float32)

_BLOCK_CHANNELS = 16  # of a block of 2x2 pixels: 12 and zeros

_Conv = Callable[[jax.Array, jax.Array], jax.Array]
_Gradients = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def precision_of(dtype: jnp.dtype) -> lax.Precision | None:
    """What products of this dtype are computed with, so that float32 means float32 everywhere.

    For float32 on GPU and TPU the default is TF32, or a pass of bfloat16: three digits of a logit.
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
    """Cross-correlation as XLA has it.

    Args:
        kernel: `[k, k, C / groups, D]`.
        padding: zeros before and after rows and columns, if others than `(k - 1) // 2` each.
        groups: of features; as many as features is a depthwise convolution.
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
    """One convolution, by platform computed in another way, and its gradients in the same way.

    The gradient of `platform_dependent` itself would keep what any of the ways needs.

    Args:
        gradients: by platform those that are not the automatic ones: functions of x, kernel and
            the cotangent.
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
    """The first convolution of a network, which reads images of three channels at stride 2.

    A GPU's matrix units multiply eight or more channels at once. With three, cuDNN pads the images,
    and most of its products are with zeros. There blocks of 2x2 pixels become channels before
    (`space to depth`): a 7x7 kernel at stride 2 over 3 channels is a 4x4 one at stride 1 over 12,
    the same products in another order.
    """
    return by_platform(x, kernel, default=partial(convolve, stride=2), cuda=_of_blocks)


def _of_blocks(x: jax.Array, kernel: jax.Array) -> jax.Array:
    images, height, width, channels = x.shape
    if height % 2 or width % 2:
        return convolve(x, kernel, stride=2)
    # The kernel gets a row and a column of zeros, at the end whose pixels begin a block.
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
    """Whether the result for images `[M, H, W, C]` has fewer pixels than the kernel has values."""
    return -(-shape[1] // stride) * -(-shape[2] // stride) < kernel_size**2


def small_image_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolution of images that are smaller than its kernel.

    The last stage of a ResNet has 2x2 pixels where its clips have 33 to 64. There XLA swaps images
    and kernel, and has only a plain loop for that on a CPU: 7 of the 50 convolutions of the
    quickstart's training step took 58 % of its time. On a CPU they are matrix products here. Over
    2x2 pixels a 3x3 kernel joins every pixel of the result with every pixel of the image, so no
    operation is wasted.
    """
    default, product = (partial(way, stride=stride) for way in (convolve, _product))
    return by_platform(x, kernel, default=default, cpu=product)


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


def pointwise_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A 1x1 convolution with a kernel `[C, D]`: a matrix product."""
    if stride == 1:
        return _pointwise(x, kernel)

    def pixels(x: jax.Array) -> jax.Array:
        # Not `x[:, ::2, ::2]`, which is a gather where the number of images is symbolic.
        return lax.slice(x, (0,) * 4, x.shape, (1, stride, stride, 1))

    # XLA's Triton product (of jaxlib 0.11.2 at least) aborts the process when it reads such pixels.
    read = lax.platform_dependent(
        x, cuda=lambda x: lax.optimization_barrier(pixels(x)), default=pixels
    )
    return _pointwise(read, kernel)


@jax.custom_vjp
def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The gradient of the kernel is written as the product that gives it as it lies in memory; the
    automatic one gives its transpose, which makes XLA copy the pixels first. And it stays float32:
    the automatic one is rounded to the dtype of `x` before devices add theirs up."""
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
