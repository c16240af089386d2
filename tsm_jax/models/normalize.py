"""From the host's pixels to the network's input, on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

# ImageNet's mean and deviation of RGB in [0, 1], as PaddleVideo, MIT and mmaction2 use them.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def normalize(video: jax.Array | np.ndarray) -> jax.Array:
    """uint8 `[N, T, H, W, 3]` to float32."""
    return (jnp.asarray(video, jnp.float32) / 255.0 - MEAN) / STD
