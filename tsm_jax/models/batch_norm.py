"""Batch normalisation and the activation behind it, with a gradient written by hand.

Forward and backward pass each read the images twice, and in between nothing is kept but the input
in its own dtype. Automatic differentiation keeps float32 copies and takes more passes. The
gradient of the activation is computed along with both readings, and not in a pass of its own.

Ioffe and Szegedy, "Batch Normalization", 2015, section 3 (algorithm 1 and the gradients after it).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

EPSILON = 1e-5  # added to variances

Activation = Literal["relu", "relu6", "leaky_relu"]

# Of Paddle and PyTorch; PP-TSM's ResNet-vd takes it.
LEAK = 0.01


def activate(x: jax.Array, activation: Activation | None) -> jax.Array:
    """The activation of each element; None leaves it as it is."""
    match activation:
        case "relu":
            return jnp.maximum(x, 0)
        case "relu6":
            return jnp.minimum(jnp.maximum(x, 0), 6)
        case "leaky_relu":
            return jax.nn.leaky_relu(x, LEAK)
    return x


def activation_gradient(
    x: jax.Array, cotangent: jax.Array, activation: Activation | None
) -> jax.Array:
    """The gradient with respect to `x` of `activate(x)`."""
    match activation:
        case "relu":
            return jnp.where(x > 0, cotangent, 0)
        case "relu6":
            return jnp.where((x > 0) & (x < 6), cotangent, 0)
        case "leaky_relu":
            return jnp.where(x > 0, cotangent, LEAK * cotangent)
    return cotangent


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def batch_norm(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    groups: int,
    activation: Activation | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises each channel over the images of a group, and applies an activation.

    Args:
        x: `[M, H, W, C]`, float32 or bfloat16; the images of a group are neighbours.
        scale, bias: `[C]`, float32.
        groups: G, divides M.

    Returns:
        The normalised images in the dtype of `x`; mean and biased variance, float32 `[G, C]`,
        through which no gradient flows.
    """
    return _forward(x, scale, bias, groups, activation)[0]


def normalize_by(
    x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array
) -> jax.Array:
    """`(x - mean) * multiplier + bias` with means and multipliers `[G, C]`, in the dtype of `x`.

    Centred before it is scaled: folding all into one offset would cost digits.
    """
    centred = _grouped(x, len(mean)) - _per_channel(mean)
    y = centred * _per_channel(multiplier) + bias
    return y.astype(x.dtype).reshape(x.shape)


@partial(jax.jit, static_argnums=(3, 4))
def _forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    groups: int,
    activation: Activation | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    values = _grouped(x, groups)
    count = values.size // (groups * len(scale))
    # Mean and variance in one pass, of the distances from a typical value: the difference of large
    # squares would cost digits, and all of them where a channel is nearly constant.
    typical = _middle_pixel(values)
    distances = values - _per_channel(typical)
    offset = _channel_sums(distances) / count
    squares = _channel_sums(jnp.square(distances)) / count
    mean, var = typical + offset, jnp.maximum(squares - jnp.square(offset), 0.0)
    inverse = lax.rsqrt(var + EPSILON)
    y = normalize_by(x, mean, scale * inverse, bias)
    return (activate(y, activation), mean, var), (x, mean, inverse, scale, bias)


@partial(jax.jit, static_argnums=(0, 1))
def _backward(
    groups: int,
    activation: Activation | None,
    residuals: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, inverse, scale, bias = residuals
    dy = _grouped(cotangents[0], groups)
    count = dy.size // (groups * len(scale))
    centred = _grouped(x, groups) - _per_channel(mean)

    def through_activation(bias: jax.Array) -> jax.Array:
        y = centred * _per_channel(scale * inverse) + bias
        return activation_gradient(y, dy, activation)

    passed = through_activation(_anew(bias))
    # Without the barrier XLA sums over images and groups once more for the sums over groups below.
    bias_gradient = lax.optimization_barrier(_channel_sums(passed))  # [G, C]
    scale_gradient = _channel_sums(passed * centred) * inverse
    bias, _ = _anew((bias, bias_gradient))
    dx = _per_channel(scale * inverse) * (
        through_activation(bias)
        - _per_channel(bias_gradient / count)
        - centred * _per_channel(inverse * scale_gradient / count)
    )
    return dx.astype(x.dtype).reshape(x.shape), scale_gradient.sum(0), bias_gradient.sum(0)


batch_norm.defvjp(_forward, _backward)


def _anew(values: Any) -> Any:
    """The same, which the compiler does not know on an NVIDIA GPU.

    So each reading of the backward pass computes what the activation lets through from what it
    reads anyway. Otherwise XLA writes a mask in the forward pass and reads it twice, which costs an
    H100 2 % of a step. On a CPU, where operations are dear, that is 9 % faster.
    """
    return lax.platform_dependent(
        values, cuda=lax.optimization_barrier, default=lambda unchanged: unchanged
    )


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    """`[M, H, W, C]` to `[G, M/G, H, W, C]`, of float32 or better."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return x.reshape(groups, -1, *x.shape[1:]).astype(dtype)


def _middle_pixel(grouped: jax.Array) -> jax.Array:
    """Of the first image of each group, `[G, C]`: padding does not reach it as it does a corner."""
    return grouped[:, 0, grouped.shape[2] // 2, grouped.shape[3] // 2, :]


def _per_channel(values: jax.Array) -> jax.Array:
    """`[G, C]`, to be broadcast over the images of each group."""
    return values[:, None, None, None, :]


def _channel_sums(grouped: jax.Array) -> jax.Array:
    """Sums over images and pixels, `[G, C]`."""
    return lax.platform_dependent(grouped, cpu=_column_sums, default=lambda x: x.sum((1, 2, 3)))


def _column_sums(grouped: jax.Array) -> jax.Array:
    """The same on XLA's CPU, 2 to 10 times as fast.

    It walks a sum over several axes, or one with other operations fused into it, against the order
    of memory; it has a fast kernel for the sum of a matrix's columns alone.
    """
    columns = grouped.reshape(len(grouped), -1, grouped.shape[-1])
    return lax.optimization_barrier(columns).sum(1)
