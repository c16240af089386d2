"""Batch-norm statistics and the classifier, computed from whole batches instead of by training.

The classifier is fitted by ridge regression on the trained features once training has ended. With
few clips, gradient descent gets all of them right after a few epochs, and its classifier at that
point depends on the path taken. The regression is determined by the features of the clips alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tsm_jax.models.convolve import FLOAT32, precision_of
from tsm_jax.models.layers import MOMENTUM
from tsm_jax.models.network import Network, Tensors, normalize
from tsm_jax.training.mesh import jit_step
from tsm_jax.training.steps import Batch, Outcome, accumulate, shown_video, with_draws


def make_statistics_step(
    network: Network,
    *,
    mesh: Mesh,
    seed: int,
    mixup: float = 0.0,
    accumulation_steps: int = 1,
    deterministic: bool = False,
) -> Callable[[Tensors, jax.Array, Batch], Tensors]:
    """Returns the jitted step `(params, step, batch) -> batch_stats`, of this batch alone.

    Its input is the one of training step number `step`. The result is what that training step would
    move the running statistics towards: means over the batch-norm groups.
    """

    def statistics_step(params: Tensors, step: jax.Array, batch: Batch) -> Tensors:
        nothing = {name: jnp.zeros(shape) for name, shape in network.batch_stat_shapes.items()}

        def compute(part: Batch) -> Outcome:
            keys, video = part["dropout_key"], shown_video(part, mixup)
            _, moved = network.apply(params, nothing, video, train=True, dropout_keys=keys)
            return Outcome({}, {name: array / (1 - MOMENTUM) for name, array in moved.items()}, {})

        batch = with_draws(batch, seed, step, mixup)
        return accumulate(compute, batch, accumulation_steps, mesh).batch_stats

    return jit_step(statistics_step, mesh, deterministic=deterministic)


class Moments(NamedTuple):
    """Weighted sums over clips; a clip is represented by its features, `[C]`, followed by a 1."""

    products: Any  # [C + 1, C + 1], outer products of clips with themselves
    classes: Any  # [K, C + 1], sums over the clips of each class


def make_moments_step(
    network: Network,
    class_weights: np.ndarray,
    *,
    mesh: Mesh,
    deterministic: bool = False,
) -> Callable[[Tensors, Tensors, Batch], Moments]:
    """Returns the jitted step `(params, batch_stats, batch) -> moments`, in evaluation mode.

    Args:
        class_weights: weight of a clip by its class, `[K]`.
    """
    precision = precision_of(FLOAT32)

    def moments_step(params: Tensors, batch_stats: Tensors, batch: Batch) -> Moments:
        video = batch["video"][:, 0]
        features = network.module(params, batch_stats).features(normalize(video))
        pooled = features.astype(jnp.float32).reshape(len(video), -1, features.shape[-1]).mean(1)
        clips = jnp.concatenate([pooled, jnp.ones((len(video), 1))], axis=1)
        weights = jnp.asarray(class_weights, jnp.float32)[batch["label"]] * batch["mask"]
        weighted = weights[:, None] * clips
        targets = jax.nn.one_hot(batch["label"], len(class_weights))
        return Moments(
            jnp.dot(clips.T, weighted, precision=precision),
            jnp.dot(targets.T, weighted, precision=precision),
        )

    return jit_step(moments_step, mesh, deterministic=deterministic)


def fit_classifier(
    moments: Moments, clips: int, strength: float, kernel: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fits the classifier by ridge regression onto the classes.

    Its scores are shares of a class, not logits. They are scaled so that over these clips they
    spread as much as those of `kernel` and `bias`, which preserves the confidence of predictions.

    Args:
        moments: moments of all clips, in float64.
        clips: number of clips.
        strength: the penalty is this times the total variance of all features, divided by `clips`.
        kernel: weights of the previous classifier, `[C, K]`.
        bias: bias of the previous classifier, `[K]`.

    Returns:
        Kernel `[C, K]` and bias `[K]`, float32; not finite if the features of all clips are alike.
    """
    total = moments.products[-1, -1]
    products, classes = moments.products / total, moments.classes / total
    mean, shares = products[-1, :-1], classes[:, -1]
    covariance = products[:-1, :-1] - np.outer(mean, mean)
    penalty = strength * np.trace(covariance) / clips + np.finfo(float).tiny
    covariance += penalty * np.eye(len(mean))
    slopes = np.linalg.solve(covariance, (classes[:, :-1] - np.outer(shares, mean)).T)

    def centred(slopes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        rows = np.vstack([slopes, offsets])
        return rows - rows.mean(1, keepdims=True)

    def spread(rows: np.ndarray) -> float:
        return np.sqrt(np.einsum("ik,ij,jk->", rows, products, rows, optimize=True))

    fitted, before = centred(slopes, shares - mean @ slopes), centred(kernel, bias)
    with np.errstate(invalid="ignore"):
        fitted = (fitted * spread(before) / spread(fitted)).astype(np.float32)
    return fitted[:-1], fitted[-1]
