"""Validation: every clip of a source once, in batches of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.sharding import Mesh

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
        batches: as `eval_batches` gives them.
        mesh: the devices.
        on_batch: called after each batch, for progress.
        on_clips: called with the `clips` of each step, in the order of the batches.

    Returns:
        `top1`, `top5`, `loss`, and `count`, the number of clips.
    """
    meter = Meter()

    def finish(result: EvalResult) -> None:
        sums, clips = result
        meter.update(jax.device_get(sums))
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
    return meter.result()
