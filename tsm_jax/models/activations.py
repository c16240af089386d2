"""Activation functions by name, with the gradients that `batch_norm` takes along."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

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
