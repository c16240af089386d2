"""Random weights to start a training from, by the name of a tensor.

Drawn with NumPy on the host: as one compiled program the draws of a ResNet-50 cost every start
2.7 s, even from the compilation cache (two CPU cores).
"""

from __future__ import annotations

import math
import zlib

import numpy as np

CLASSIFIER = "head.fc.kernel"


def initial_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A tensor's first value, float32.

    Kernels of convolutions are Kaiming-normal over fan-in, `N(0, 2 / (k * k * C_in))`, and the
    classifier's is `N(0, 0.001^2)`, as in PaddleVideo's and MIT's recipes; scales and variances of
    batch norm are 1, biases and means 0.

    Args:
        name: path in the module tree. A tensor's draw depends on it and on `seed`, and on no other
            tensor.
        shape: HWIO for a convolution's kernel, `[C, K]` for the classifier's.
        seed: of the run.

    Raises:
        ValueError: there is no rule for this name.
    """
    kind = name.rsplit(".", 1)[-1]
    if kind in ("scale", "var"):
        return np.ones(shape, np.float32)
    if kind in ("bias", "mean"):
        return np.zeros(shape, np.float32)
    if kind != "kernel":
        raise ValueError(f"no rule for the first value of {name}")
    fan_in = math.prod(shape[:-1])
    deviation = 0.001 if name == CLASSIFIER else math.sqrt(2 / fan_in)
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.standard_normal(shape, np.float32) * np.float32(deviation)
