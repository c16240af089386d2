"""The weights and inputs that the goldens were made with, from NumPy generators alone."""

from __future__ import annotations

import zlib

import numpy as np

from tsm_jax.weights.paddle_names import paddle_tensors


def state_dict(num_classes: int, seed: int) -> dict[str, np.ndarray]:
    """Every tensor of PaddleVideo's TSM-ResNet-50, by its name there; each seeds its own draw."""
    return {
        tensor.paddle: _draw(tensor.paddle, tensor.shape, seed)
        for tensor in paddle_tensors("resnet50", 64, num_classes)
    }


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()) + seed)
    if name.endswith("conv2._batch_norm.weight"):
        value = rng.uniform(0.1, 0.3, shape)
    elif name.endswith(("_batch_norm.weight", "._variance")):
        value = rng.uniform(0.5, 1.5, shape)
    elif name.endswith(("_batch_norm.bias", "._mean", "fc.bias")):
        value = rng.normal(0, 0.1, shape)
    elif name.endswith("fc.weight"):
        value = rng.normal(0, 0.05, shape)
    else:
        value = rng.normal(0, np.sqrt(2.0 / np.prod(shape[1:])), shape)
    return value.astype(np.float32)


def forward_input(seed: int, clips: int, segments: int, size: int) -> np.ndarray:
    """Normalised video, float32 `[N, T, 3, S, S]`."""
    rng = np.random.default_rng(100 + seed)
    return rng.normal(size=(clips, segments, 3, size, size)).astype(np.float32)


def train_batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised video, float32 `[4, 8, 3, 64, 64]`, and labels `[4]` of a training step."""
    rng = np.random.default_rng(step)
    video = rng.normal(size=(4, 8, 3, 64, 64)).astype(np.float32)
    return video, rng.integers(0, 10, (4, 1)).astype(np.int64)[:, 0]
