"""The weights and inputs behind `goldens/torch_forward.npz`.

Every tensor is drawn from a generator seeded by its key in the original state dict.
"""

from __future__ import annotations

import zlib

import numpy as np

# Batch norm scales that end a residual branch: small, so that activations stay finite.
_LAST_NORM_RESNET = ("bn3.weight", "conv3.bn.weight")
_LAST_NORM_MOBILENET = ("conv.7.weight", ".conv.3.weight", ".conv.2.bn.weight")


def weight(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Kernels are OIHW; the counter of a batch norm is int64."""
    rng = np.random.default_rng(zlib.crc32(key.encode()) + seed)
    leaf = key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.array(rng.integers(1, 100_000), np.int64)
    if leaf in ("running_mean", "bias"):
        value = rng.normal(0, 0.1, shape)
    elif leaf == "running_var":
        value = rng.uniform(0.5, 1.5, shape)
    elif len(shape) == 4:
        value = rng.normal(0, np.sqrt(2.0 / np.prod(shape[1:])), shape)
    elif len(shape) == 2:
        value = rng.normal(0, 0.05, shape)
    elif key.endswith(_LAST_NORM_RESNET):
        value = rng.uniform(0.1, 0.3, shape)
    elif key.endswith(_LAST_NORM_MOBILENET):
        value = rng.uniform(0.2, 0.5, shape)
    else:
        value = rng.uniform(0.5, 1.5, shape)
    return value.astype(np.float32)


def video(seed: int, clips: int, segments: int, size: int) -> np.ndarray:
    """Normalised, `[N, T, 3, H, W]`: a mosaic of 4x4 per frame and noise."""
    rng = np.random.default_rng(500 + seed)
    mosaic = rng.normal(size=(clips, segments, 3, 4, 4))
    noise = rng.normal(size=(clips, segments, 3, size, size))
    cell = np.arange(size) * 4 // size
    return (mosaic[..., cell[:, None], cell] + 0.5 * noise).astype(np.float32)
