"""Convolution, batch normalisation and pooling for both data formats.

Flax's own layers know one layout. These keep every parameter in one form (kernels HWIO) whatever
the data format is, so that a checkpoint serves both, and normalise over groups of clips.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from tsm_jax.models.batch_norm import batch_norm, normalize_by


@jax.custom_vjp
def _pointwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`[M, H, W, C_in]` times `[C_in, C_out]`.

    The gradient of the kernel is written as the product that gives it as it lies in memory; the
    automatic one gives its transpose, which makes XLA copy the pixels first.
    """
    return jnp.dot(x, kernel)


def _pointwise_forward(x: jax.Array, kernel: jax.Array):
    return _pointwise(x, kernel), (x, kernel)


def _pointwise_backward(
    residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    pixels, features = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    dx = lax.dot_general(features, kernel, (((1,), (1,)), ((), ())))
    return dx.reshape(x.shape), lax.dot_general(pixels, features, (((0,), (0,)), ((), ())))


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


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
        x, kernel = x.astype(dtype), self.kernel[...].astype(dtype)
        if kernel.shape[:2] == (1, 1) and self.data_format == "NHWC":
            # A matrix product, whose gradients need no transposed copies.
            return _pointwise(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        return lax.conv_general_dilated(
            x,
            kernel,
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
        scale, bias = self.scale[...], self.bias[...]
        if groups is None:
            multiplier = scale * lax.rsqrt(self.var[...] + self.epsilon)
            mean = self.mean[...][None]
            return normalize_by(x, mean, multiplier[None], bias, self.data_format)
        results: Any = batch_norm(x, scale, bias, groups, self.epsilon, self.data_format)
        y, mean, var = results
        self._update_running(mean.mean(0), var.mean(0))
        return y

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
