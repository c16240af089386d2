"""Validation: every clip of a source once, in batches of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import Mesh

from tsm_jax.models.network import Tensors
from tsm_jax.training.mesh import put_batch
from tsm_jax.training.metrics import Meter
from tsm_jax.training.steps import EvalStep

ON_DEVICE = ("video", "label", "mask")


def evaluate(
    eval_step: EvalStep,
    params: Tensors,
    batch_stats: Tensors,
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Means over all clips.

    Args:
        eval_step: from `make_eval_step`.
        params: of the network.
        batch_stats: of the network.
        batches: as `eval_batches` gives them.
        mesh: the devices.
        on_batch: called after each batch, for progress.

    Returns:
        `top1`, `top5`, `loss`, and `count`, the number of clips.
    """
    meter = Meter()
    pending = None
    for batch in batches:
        device_batch = put_batch({name: batch[name] for name in ON_DEVICE}, mesh)
        sums = eval_step(params, batch_stats, device_batch)
        if pending is not None:  # one step behind, so that devices never wait for the host
            meter.update(jax.device_get(pending))
        pending = sums
        on_batch()
    if pending is not None:
        meter.update(jax.device_get(pending))
    return meter.result()
