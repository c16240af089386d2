"""Convolution, batch normalisation and pooling for both data formats.

Flax's own layers know one layout. These keep every parameter in one form (kernels HWIO) whatever
the data format is, so that a checkpoint serves both, and normalise over groups of clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


class Conv(nnx.Module):
    """2-D convolution without bias, explicit symmetric padding `(k - 1) // 2`.

    The padding is explicit because 'SAME' pads one side only where the stride is 2.
    Kaiming-normal over fan-in, as PaddleVideo initialises (`sqrt(2 / (k * k * C_in))`).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        data_format: str = "NHWC",
        dtype: jnp.dtype | None = None,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, kernel_size, in_features, out_features)
        initializer = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")
        self.kernel = nnx.Param(initializer(rngs.params(), shape, jnp.float32))
        self.stride = stride
        self.padding = (kernel_size - 1) // 2
        self.data_format = data_format
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = self.dtype or x.dtype
        return lax.conv_general_dilated(
            x.astype(dtype),
            self.kernel[...].astype(dtype),
            window_strides=(self.stride, self.stride),
            padding=((self.padding, self.padding),) * 2,
            dimension_numbers=(self.data_format, "HWIO", self.data_format),
        )


class BatchNorm(nnx.Module):
    """Batch normalisation whose training statistics are those of groups of images.

    A group stands for the batch of one device of the reference, so that a recipe means the same on
    any number of devices. Statistics are taken in float32 and in one pass over the data; the
    running ones move by the mean over the groups (momentum 0.9, biased variance, as Flax and
    Paddle's CPU kernel keep it). The result has the dtype of the input.
    """

    def __init__(
        self,
        features: int,
        *,
        data_format: str = "NHWC",
        momentum: float = 0.9,
        epsilon: float = 1e-5,
    ):
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(features, jnp.float32))
        self.data_format = data_format
        self.momentum = momentum
        self.epsilon = epsilon

    def __call__(self, x: jax.Array, *, groups: int | None) -> jax.Array:
        """Normalises `[M, H, W, C]` or `[M, C, H, W]`.

        Args:
            x: the images of all clips; clips are neighbours, so groups of images are groups of
                clips.
            groups: the number of groups to train with; None takes the running statistics.
        """
        grouped = x.reshape(groups or 1, -1, *x.shape[1:])  # [G, M/G, H, W, C]
        if groups is None:
            mean, var = self.mean[...][None], self.var[...][None]
        else:
            values = grouped.astype(jnp.float32)
            mean = self._mean_over_images(values)  # [G, C]
            squares = self._mean_over_images(jnp.square(values))
            var = jnp.maximum(squares - jnp.square(mean), 0.0)
            self._update_running(mean.mean(0), var.mean(0))
        multiplier = self.scale[...] * lax.rsqrt(var + self.epsilon)
        # Centred before it is scaled: folding both into one offset would cost digits.
        centred = grouped.astype(jnp.float32) - self._per_channel(mean)
        normalised = centred * self._per_channel(multiplier) + self._per_channel(self.bias[...])
        return normalised.astype(x.dtype).reshape(x.shape)

    def _mean_over_images(self, grouped: jax.Array) -> jax.Array:
        """`[G, M, H, W, C]` or `[G, M, C, H, W]` to `[G, C]`.

        First within an image, then over the images: XLA's CPU adds up one by one, and partial
        sums keep the gradients of six training steps twice as exact.
        """
        pixels = (2, 3) if self.data_format == "NHWC" else (3, 4)
        return grouped.mean(pixels).mean(1)

    def _per_channel(self, values: jax.Array) -> jax.Array:
        """`[G, C]` or `[C]`, to be broadcast over the images of each group."""
        groups, channels = values.reshape(-1, values.shape[-1]).shape
        nhwc = self.data_format == "NHWC"
        return values.reshape((groups, 1, 1, 1, channels) if nhwc else (groups, 1, channels, 1, 1))

    def _update_running(self, mean: jax.Array, var: jax.Array) -> None:
        self.mean[...] = self.momentum * self.mean[...] + (1 - self.momentum) * mean
        self.var[...] = self.momentum * self.var[...] + (1 - self.momentum) * var


class ConvNorm(nnx.Module):
    """Convolution, then batch normalisation. Arguments as of `Conv`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        data_format: str = "NHWC",
        **conv: Any,
    ):
        self.conv = Conv(in_features, out_features, kernel_size, data_format=data_format, **conv)
        self.norm = BatchNorm(out_features, data_format=data_format)

    def __call__(self, x: jax.Array, *, groups: int | None) -> jax.Array:
        return self.norm(self.conv(x), groups=groups)


def spatial_axes(data_format: str) -> tuple[int, int]:
    """The axes of height and width of an image tensor of rank 4."""
    return (1, 2) if data_format == "NHWC" else (2, 3)


def max_pool_3x3_stride_2(x: jax.Array, data_format: str) -> jax.Array:
    """The ResNet stem's pooling: 3x3, stride 2, padded by 1 with minus infinity."""
    window, strides, padding = [1] * 4, [1] * 4, [(0, 0)] * 4
    for axis in spatial_axes(data_format):
        window[axis], strides[axis], padding[axis] = 3, 2, (1, 1)
    return _max_pool(x, window, strides, padding)


def _max_pool(
    x: jax.Array,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)
