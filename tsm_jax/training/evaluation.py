"""Validation: every clip of a source once, in batches of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from tsm_jax.accuracy import class_metrics
from tsm_jax.models.network import Tensors
from tsm_jax.training.mesh import put_batch
from tsm_jax.training.metrics import Meter
from tsm_jax.training.steps import EvalResult, EvalStep

ON_DEVICE = ("video", "label", "mask")


def evaluate(
    eval_step: EvalStep,
    params: Tensors,
    batch_stats: Tensors,
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    on_batch: Callable[[], None] = lambda: None,
    on_clips: Callable[[dict[str, np.ndarray]], None] | None = None,
) -> dict[str, float]:
    """Means over all clips.

    Args:
        eval_step: from `make_eval_step`.
        params: of the network.
        batch_stats: of the network.
        batches: as `eval_batches` gives them, at least one.
        mesh: the devices.
        on_batch: called after each batch, for progress.
        on_clips: called with the `clips` of each step, in the order of the batches.

    Returns:
        `loss`, `top1`, `top5` with more than five classes, `count`, the number of clips, and
        `class_metrics`.
    """
    meter = Meter()
    classes = np.zeros((3, 1), np.int64)

    def finish(result: EvalResult) -> None:
        nonlocal classes
        sums, clips = jax.device_get(result[0]), result[1]
        meter.update(sums)
        classes = classes + sums["classes"]
        if on_clips is not None:
            on_clips(jax.device_get(clips))

    pending = None
    for batch in batches:
        device_batch = put_batch({name: batch[name] for name in ON_DEVICE}, mesh)
        result = eval_step(params, batch_stats, device_batch)
        if pending is not None:  # one step behind, so that devices never wait for the host
            finish(pending)
        pending = result
        on_batch()
    if pending is not None:
        finish(pending)
    return {**meter.result(classes.shape[1]), **class_metrics(classes)}
