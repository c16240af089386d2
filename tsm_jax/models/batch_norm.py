"""Batch normalisation and the activation after it, with a hand-written gradient.

The forward and the backward pass each read the images twice. Between them, of the images only the
input is kept, in its own dtype. Automatic differentiation would keep float32 copies and need more
passes. The gradient of the activation is computed during both reads, not in a pass of its own.

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

# Default slope of leaky ReLU in Paddle and PyTorch, used by PP-TSM's ResNet-vd.
LEAK = 0.01


def activate(x: jax.Array, activation: Activation | None) -> jax.Array:
    """Applies an activation to each element; None returns `x` unchanged."""
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
    """Returns the gradient of `activate(x)` with respect to `x`."""
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
    """Normalises each channel over the images of a group and applies an activation.

    Args:
        x: `[M, H, W, C]`, float32 or bfloat16; the images of a group are consecutive.
        scale, bias: `[C]`, float32.
        groups: G, a divisor of M.
        activation: applied to the normalised images, if not None.

    Returns:
        The result in the dtype of `x`, then the mean and the biased variance, float32 `[G, C]`. No
        gradient flows through the last two.
    """
    return _forward(x, scale, bias, groups, activation)[0]


def normalize_by(
    x: jax.Array, mean: jax.Array, multiplier: jax.Array, bias: jax.Array
) -> jax.Array:
    """Returns `(x - mean) * multiplier + bias` in the dtype of `x`; means, multipliers `[G, C]`.

    The mean is subtracted before scaling; folding it into a single offset would lose digits.
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
    # Mean and variance in one pass. They are computed from distances to a typical value, because
    # the difference of large squares would lose digits, all of them in an almost constant channel.
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

    passed = through_activation(_opaque_copy(bias))
    # Without this barrier XLA would sum over all images again for the sums over groups below.
    bias_gradient = lax.optimization_barrier(_channel_sums(passed))  # [G, C]
    scale_gradient = _channel_sums(passed * centred) * inverse
    bias, _ = _opaque_copy((bias, bias_gradient))
    dx = _per_channel(scale * inverse) * (
        through_activation(bias)
        - _per_channel(bias_gradient / count)
        - centred * _per_channel(inverse * scale_gradient / count)
    )
    return dx.astype(x.dtype).reshape(x.shape), scale_gradient.sum(0), bias_gradient.sum(0)


batch_norm.defvjp(_forward, _backward)


def _opaque_copy(values: Any) -> Any:
    """Returns the same values, but hides that from the compiler on an NVIDIA GPU.

    Each read of the backward pass then recomputes the activation's mask from the values that it
    reads anyway. Otherwise XLA writes the mask in the forward pass and reads it twice, which costs
    2 % of a step on an H100. On a CPU, where operations are expensive, that is 9 % faster.
    """
    return lax.platform_dependent(
        values, cuda=lax.optimization_barrier, default=lambda unchanged: unchanged
    )


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    """Reshapes `[M, H, W, C]` to `[G, M/G, H, W, C]`, in float32 or higher precision."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return x.reshape(groups, -1, *x.shape[1:]).astype(dtype)


def _middle_pixel(grouped: jax.Array) -> jax.Array:
    """Returns the middle pixel of the first image of each group, `[G, C]`.

    Unlike a corner, it is not affected by padding.
    """
    return grouped[:, 0, grouped.shape[2] // 2, grouped.shape[3] // 2, :]


def _per_channel(values: jax.Array) -> jax.Array:
    """Reshapes `[G, C]` for broadcasting over the images of each group."""
    return values[:, None, None, None, :]


def _channel_sums(grouped: jax.Array) -> jax.Array:
    """Returns the sums over images and pixels, `[G, C]`."""
    return lax.platform_dependent(grouped, cpu=_column_sums, default=lambda x: x.sum((1, 2, 3)))


def _column_sums(grouped: jax.Array) -> jax.Array:
    """Returns the same sums, 2 to 10 times as fast with XLA on a CPU.

    XLA has a fast kernel only for the column sums of a matrix. A sum over several axes, or one
    fused with other operations, is computed against the memory order.
    """
    columns = grouped.reshape(len(grouped), -1, grouped.shape[-1])
    return lax.optimization_barrier(columns).sum(1)
