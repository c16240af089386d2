"""The weights and inputs that the goldens were made with, drawn with NumPy alone.

Each tensor is drawn from a generator that is seeded with its name in the original network.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from tsm_jax.weights.paddle_names import paddle_tensors

GOLDENS = Path(__file__).parent / "goldens"


def state_dict(
    num_classes: int, seed: int, backbone: str = "resnet50", num_segments: int | None = None
) -> dict[str, np.ndarray]:
    """Returns all tensors of a PaddleVideo network under PaddleVideo's names."""
    return {
        tensor.paddle: draw(tensor.paddle, tensor.shape, seed)
        for tensor in paddle_tensors(backbone, 64, num_classes, num_segments)
    }


# Batch norm scales at the end of a residual branch. They are small, so activations stay finite.
_LAST_NORM_RESNET = ("conv2._batch_norm.weight", "bn3.weight", "conv3.bn.weight")
_LAST_NORM_MOBILENET = (
    *("_linear_conv._batch_norm.weight", "conv.7.weight"),
    *(".conv.3.weight", ".conv.2.bn.weight"),
)


def draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Draws a tensor. Kernels are OIHW; the batch counter of a batch norm is int64."""
    rng = np.random.default_rng(zlib.crc32(name.encode()) + seed)
    if name.endswith("num_batches_tracked"):
        return np.array(rng.integers(1, 100_000), np.int64)
    if name.endswith((".bias", "_mean")):
        value = rng.normal(0, 0.1, shape)
    elif len(shape) == 4:
        value = rng.normal(0, np.sqrt(2.0 / np.prod(shape[1:])), shape)
    elif len(shape) == 2:
        value = rng.normal(0, 0.05, shape)
    elif name.endswith(_LAST_NORM_RESNET):
        value = rng.uniform(0.1, 0.3, shape)
    elif name.endswith(_LAST_NORM_MOBILENET):
        value = rng.uniform(0.2, 0.5, shape)
    else:
        value = rng.uniform(0.5, 1.5, shape)
    return value.astype(np.float32)


def forward_input(seed: int, clips: int, segments: int, size: int) -> np.ndarray:
    """Returns a normalised video of noise, float32 `[N, T, 3, S, S]`."""
    rng = np.random.default_rng(100 + seed)
    return rng.normal(size=(clips, segments, 3, size, size)).astype(np.float32)


def mosaic(seed: int, clips: int, segments: int, size: int) -> np.ndarray:
    """Returns a normalised video of 4x4 squares per frame and noise, float32 `[N, T, 3, S, S]`."""
    rng = np.random.default_rng(500 + seed)
    squares = rng.normal(size=(clips, segments, 3, 4, 4))
    noise = rng.normal(size=(clips, segments, 3, size, size))
    cell = np.arange(size) * 4 // size
    return (squares[..., cell[:, None], cell] + 0.5 * noise).astype(np.float32)


def train_batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the batch of a training step: normalised video, float32 `[4, 8, 3, 64, 64]`, and
    labels `[4]`."""
    rng = np.random.default_rng(step)
    video = rng.normal(size=(4, 8, 3, 64, 64)).astype(np.float32)
    return video, rng.integers(0, 10, (4, 1)).astype(np.int64)[:, 0]
