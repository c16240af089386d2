"""Convolution and batch normalisation as the reference implementations compute them.

Flax's layers pad differently at stride 2 and do not support batch norm over groups of clips. Images
are `[M, H, W, C]`, kernels HWIO.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from tsm_jax.models.batch_norm import EPSILON, Activation, activate, batch_norm, normalize_by
from tsm_jax.models.convolve import (
    FLOAT32,
    convolve,
    image_conv,
    is_small,
    pointwise_conv,
    precision_of,
    small_image_conv,
)
from tsm_jax.models.depthwise import depthwise_conv


class Conv(nnx.Module):
    """2-D convolution without bias and with explicit symmetric padding of `(k - 1) // 2`.

    The padding is explicit because 'SAME' pads only one side at stride 2. If `feature_groups`
    equals the number of features, this is a depthwise convolution.

    The initial kernel is Kaiming-normal, `N(0, 2 / (k * k * C))`, where C is the number of features
    that an output value reads (`fan="in"`) or the number of output features (`fan="out"`).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        feature_groups: int = 1,
        fan: Literal["in", "out"] = "in",
        dtype: jnp.dtype | None = None,
    ):
        shape = (kernel_size, kernel_size, in_features // feature_groups, out_features)
        fan_size = kernel_size**2 * (shape[2] if fan == "in" else out_features)
        zeros = jnp.zeros(shape, jnp.float32)
        self.kernel = nnx.Param(zeros, deviation=math.sqrt(2 / fan_size))
        self.stride = stride
        self.feature_groups = feature_groups
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = self.dtype or x.dtype
        x, kernel = x.astype(dtype), self.kernel[...]
        if kernel.shape[:2] == (1, 1) and self.feature_groups == 1:
            return pointwise_conv(x, kernel[0, 0], self.stride)
        if kernel.shape[2:] == (1, self.feature_groups):
            return depthwise_conv(x, kernel, self.stride)
        if kernel.shape[2] == 3 and self.stride == 2:
            return image_conv(x, kernel)
        if self.feature_groups == 1 and is_small(x.shape, len(kernel), self.stride):
            return small_image_conv(x, kernel, self.stride)
        return convolve(x, kernel, stride=self.stride, groups=self.feature_groups)


# Share of the old value that running statistics keep in a training step.
MOMENTUM = 0.9


class BatchNorm(nnx.Module):
    """Batch normalisation with training statistics over groups of images.

    A group corresponds to the batch of one device in the reference implementations, so a recipe
    means the same on any number of devices. Statistics are computed in float32 in one pass over
    the data. The running statistics are updated with the mean over the groups; their variance is
    biased by default, as in Flax and Paddle's CPU kernel. The result has the dtype of the input.

    Attributes:
        frozen: use the running statistics in training as well without updating them, and train
            neither scale nor bias.
        unbiased: store the unbiased variance, as PyTorch and cuDNN do.
    """

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(features, jnp.float32))
        self.frozen = False
        self.unbiased = False

    def __call__(
        self, x: jax.Array, *, groups: int | None, activation: Activation | None = None
    ) -> jax.Array:
        """Normalises images and applies an activation to the result.

        Args:
            x: the images of all clips, `[M, H, W, C]`. The images of a clip are consecutive, so
                groups of images are groups of clips.
            groups: number of groups in training; None uses the running statistics.
        """
        scale, bias = self.scale[...], self.bias[...]
        if groups is None or self.frozen:
            if self.frozen:
                scale, bias = lax.stop_gradient((scale, bias))
            multiplier = scale * lax.rsqrt(self.var[...] + EPSILON)
            y = normalize_by(x, self.mean[...][None], multiplier[None], bias)
            return activate(y, activation)
        results: Any = batch_norm(x, scale, bias, groups, activation)
        y, mean, var = results
        if self.unbiased:
            count = x.size // (groups * len(scale))
            var = var * (count / max(count - 1, 1))
        # Not `running[...] = `, which queries the sharding of a traced array and takes a fifth of
        # the time of tracing a step.
        for running, new in ((self.mean, mean.mean(0)), (self.var, var.mean(0))):
            running.set_value(MOMENTUM * running[...] + (1 - MOMENTUM) * new)
        return y


def linear(in_features: int, out_features: int, deviation: float) -> nnx.Linear:
    """Returns a fully connected layer whose initial kernel is `N(0, deviation^2)`."""
    layer = nnx.Linear(
        in_features,
        out_features,
        precision=precision_of(FLOAT32),
        kernel_init=nnx.initializers.zeros,
        rngs=nnx.Rngs(0),
    )
    layer.kernel.set_metadata(deviation=deviation)
    return layer


class Bias(nnx.Module):
    """Replaces a `BatchNorm` whose scale has been folded into the kernel of a convolution."""

    def __init__(self, bias: np.ndarray):
        self.bias = nnx.Param(bias)

    def __call__(
        self, x: jax.Array, *, groups: int | None, activation: Activation | None = None
    ) -> jax.Array:
        assert groups is None
        return activate(x + self.bias[...], activation)


class ConvNorm(nnx.Module):
    """Convolution, batch normalisation and an optional activation.

    The arguments are those of `Conv`.
    """

    def __init__(self, in_features: int, out_features: int, kernel_size: int, **conv: Any):
        self.conv = Conv(in_features, out_features, kernel_size, **conv)
        self.norm: BatchNorm | Bias = BatchNorm(out_features)

    def fold(self) -> None:
        """Folds the batch norm into the convolution, which gets a bias.

        The folded tensors are computed in float64, so that they are rounded only once, and stored
        in the dtype of the convolution. A folded layer cannot be trained. The tensors must be
        concrete, not traced.
        """
        norm, dtype = self.norm, self.conv.dtype or jnp.float32
        assert isinstance(norm, BatchNorm)
        scale, bias, mean, var = (
            np.asarray(tensor.get_value(), np.float64)
            for tensor in (norm.scale, norm.bias, norm.mean, norm.var)
        )
        multiplier = scale / np.sqrt(var + EPSILON)
        kernel: Any = np.asarray(self.conv.kernel.get_value(), np.float64) * multiplier
        self.conv.kernel = nnx.Param(kernel.astype(dtype))
        self.norm = Bias((bias - mean * multiplier).astype(dtype))

    def __call__(
        self, x: jax.Array, *, groups: int | None, activation: Activation | None = None
    ) -> jax.Array:
        return self.norm(self.conv(x), groups=groups, activation=activation)


def runner(remat: bool) -> Callable[[Any, jax.Array, int | None], jax.Array]:
    """Returns a function that calls a block of a backbone.

    With `remat`, the backward pass recomputes the intermediate values of the block instead of
    keeping them.
    """

    def run(block: Any, x: jax.Array, groups: int | None) -> jax.Array:
        return block(x, groups=groups)

    return nnx.remat(run, static_argnums=2) if remat else run
