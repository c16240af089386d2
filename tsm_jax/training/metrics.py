"""Sums over clips that can be added up over batches and devices and divided at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Loss of each clip, float32 `[N]`.

    Args:
        logits: `[N, K]`.
        labels: int `[N]`.
        label_smoothing: share e of the target that is spread over all K classes:
            `(1 - e) * onehot + e / K`.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def clip_ranks(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many other classes score at least as high as each clip's own, int32 `[N]`.

    A clip is in the top k when its rank is below k; ties therefore count against it, and a
    constant output is not taken for a right answer. Scores that are not finite give rank K.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    rank = (logits >= own).sum(1, dtype=jnp.int32) - 1
    return jnp.where(jnp.isfinite(logits).all(1), rank, logits.shape[1])


def clip_sums(ranks: jax.Array, mask: jax.Array, losses: jax.Array) -> dict[str, jax.Array]:
    """Sums over the clips whose `mask` is True; padding counts for nothing.

    Args:
        ranks: of `clip_ranks`, `[N]`.
        mask: bool `[N]`.
        losses: `[N]`.

    Returns:
        `count`, `top1`, `top5` (int32) and `loss` (float32), scalars.
    """
    return {
        "count": mask.sum(dtype=jnp.int32),
        "top1": (mask & (ranks < 1)).sum(dtype=jnp.int32),
        "top5": (mask & (ranks < 5)).sum(dtype=jnp.int32),
        "loss": jnp.where(mask, losses, 0.0).sum(),
    }


@dataclass
class Meter:
    """Adds up `clip_sums` on the host, in float64 and integers."""

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_KEYS, 0))

    def update(self, sums: dict[str, np.ndarray]) -> None:
        for name in _KEYS:
            self.sums[name] += sums[name].item()

    def result(self) -> dict[str, float]:
        """Means over the clips seen: `loss`, `top1`, `top5` (nan of none), and their `count`."""
        count = self.sums["count"]
        means = {name: self.sums[name] / (count or math.nan) for name in ("loss", "top1", "top5")}
        return {**means, "count": count}


_KEYS = ("count", "top1", "top5", "loss")
