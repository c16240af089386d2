"""Losses, and sums over clips that are added over batches and devices and divided at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns the loss of each clip, float32 `[N]`, from logits `[N, K]` and labels `[N]`.

    With `label_smoothing` e, the target is `(1 - e) * onehot + e / K`.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def class_weights(clips: ArrayLike, exponent: float) -> np.ndarray:
    """Returns weights of the loss by class, `[K]`, proportional to `(1 / clips)^exponent`.

    Their mean over all clips is 1, so a learning rate means the same as without weights. A class
    without clips has weight 0.
    """
    counts = np.asarray(clips, np.float64)
    weights = np.zeros(len(counts))
    weights[counts > 0] = counts[counts > 0] ** -exponent
    return weights * counts.sum() / (weights * counts).sum()


def clip_ranks(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns how many other classes score at least as high as each clip's own, int32 `[N]`.

    A clip is in the top k if its rank is below k. Ties therefore count against it, and a constant
    output never counts as correct. Scores that are not finite give rank K.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)
    rank = (logits >= own).sum(1, dtype=jnp.int32) - 1
    return jnp.where(jnp.isfinite(logits).all(1), rank, logits.shape[1])


def clip_sums(ranks: jax.Array, mask: jax.Array, losses: jax.Array) -> dict[str, jax.Array]:
    """Returns sums over the clips whose `mask` is True; the others are padding.

    The arguments are `[N]`, the sums scalars: `count`, `top1`, `top5` (int32) and `loss` (float32).
    """
    return {
        "count": mask.sum(dtype=jnp.int32),
        "top1": (mask & (ranks < 1)).sum(dtype=jnp.int32),
        "top5": (mask & (ranks < 5)).sum(dtype=jnp.int32),
        "loss": jnp.where(mask, losses, 0.0).sum(),
    }


def class_sums(
    logits: jax.Array, labels: jax.Array, ranks: jax.Array, mask: jax.Array
) -> jax.Array:
    """Counts the clips whose `mask` is True by class, int32 `[3, K]`.

    The rows count the clips of each class, those of them that are recognised, and the clips
    predicted as the class. Scores that are not finite predict no class.
    """
    num_classes = logits.shape[1]
    classes = jnp.stack([labels, labels, logits.argmax(1)])
    counted = jnp.stack([mask, mask & (ranks < 1), mask & (ranks < num_classes)])
    # A sum over clips instead of a scatter: devices exchange only K numbers.
    return (jax.nn.one_hot(classes, num_classes, dtype=bool) & counted[..., None]).sum(
        1, dtype=jnp.int32
    )


@dataclass
class Meter:
    """Adds up `clip_sums` on the host, in float64 and integers."""

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_KEYS, 0))

    def update(self, sums: dict[str, np.ndarray]) -> None:
        for name in _KEYS:
            self.sums[name] += sums[name].item()

    def result(self, num_classes: int) -> dict[str, float]:
        """Returns means over the clips (nan without any), `loss`, `top1`, `top5`, and `count`.

        With five classes or fewer, `top5` is omitted: it would be 1 for any predictions.
        """
        count = self.sums["count"]
        names = ("loss", "top1", "top5") if num_classes > 5 else ("loss", "top1")
        means = {name: self.sums[name] / (count or math.nan) for name in names}
        return {**means, "count": count}


_KEYS = ("count", "top1", "top5", "loss")
