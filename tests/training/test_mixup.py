"""Mixup inside the jitted step, on a network of one layer."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tsm_jax.models.network import normalize
from tsm_jax.training.mesh import make_mesh, put_batch, replicated
from tsm_jax.training.state import TrainState
from tsm_jax.training.steps import make_train_step

CLIPS, CLASSES, ALPHA = 4, 3, 0.4


class Linear:
    """Logits from the mean colour of a clip."""

    def apply(self, params, batch_stats, video, *, train, dropout_keys):
        return video.mean((1, 2, 3)) @ params["kernel"], batch_stats


def batch():
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 256, (CLIPS, 1, 1, 1, 1, 3), dtype=np.uint8)
    return {
        "video": np.ascontiguousarray(np.broadcast_to(shades, (CLIPS, 1, 2, 4, 4, 3))),
        "label": np.array([0, 1, 2, 1], np.int32),
        "mask": np.ones(CLIPS, bool),
    }


KERNEL = np.random.default_rng(1).normal(size=(3, CLASSES)).astype(np.float32)


OPTIMIZER = optax.sgd(0.0)


@functools.cache
def compiled_step(mesh, **arguments):
    network: Any = Linear()
    return make_train_step(network, OPTIMIZER, lambda step: 0.0, mesh=mesh, seed=0, **arguments)


def losses(steps=1, *, mixup=ALPHA, devices=1, start=0, **arguments):
    """Returns the mean loss of each step; the learning rate is 0, so the network never changes."""
    mesh = make_mesh(jax.devices()[:devices])
    step = compiled_step(mesh, mixup=mixup, **arguments)
    params = {"kernel": jnp.asarray(KERNEL)}
    counter = jnp.asarray(start, jnp.int32)
    state = TrainState(counter, params, {}, OPTIMIZER.init(params), jnp.zeros((), jnp.int32))
    state = jax.device_put(state, replicated(mesh))
    found = []
    for _ in range(steps):
        state, metrics = step(state, put_batch(batch(), mesh))
        found.append(float(metrics["loss"]) / CLIPS)
    return found


def expected(share, label_smoothing=0.0):
    """Returns the mean loss if each clip is mixed with the one at the mirrored position."""
    clips, labels = np.asarray(normalize(batch()["video"][:, 0])), np.eye(CLASSES)[batch()["label"]]
    labels = (1 - label_smoothing) * labels + label_smoothing / CLASSES
    mixed = share * clips + (1 - share) * clips[::-1]
    targets = share * labels + (1 - share) * labels[::-1]
    logits = mixed.mean((1, 2, 3)) @ KERNEL
    return float((np.log(np.exp(logits).sum(1)) - (targets * logits).sum(1)).mean())


def test_clips_and_targets_are_mixed_by_the_same_share():
    """All steps lie on the curve of losses that is parametrised by the share."""
    label_smoothing = 0.1
    shares = np.linspace(0.5, 1, 5001)
    curve = np.array([expected(share, label_smoothing) for share in shares])
    found = losses(4, label_smoothing=label_smoothing)
    nearest = [shares[abs(curve - loss).argmin()] for loss in found]
    np.testing.assert_allclose([expected(s, label_smoothing) for s in nearest], found, atol=1e-3)
    assert len({round(share, 2) for share in nearest}) > 1
    assert max(abs(loss - curve[-1]) for loss in found) > 0.01  # not the clips themselves


def test_zero_mixes_nothing():
    assert losses(mixup=0.0) == pytest.approx([expected(1.0)], rel=1e-6)


def test_a_step_mixes_the_same_after_a_restart_on_devices_and_in_parts():
    first, second = losses(2)
    assert losses(1, start=1) == [second] and first != second
    assert losses(2, devices=4) == pytest.approx([first, second], rel=1e-6)
    assert losses(2, accumulation_steps=2) == pytest.approx([first, second], rel=1e-6)
