"""Gradient accumulation: a batch in parts, one after the other, as if it were one.

The gradients are means over clips and batch norm takes its statistics over groups of clips, so
parts that hold whole groups give what the whole batch gives, with the activations of one part in
memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tsm_jax.models.network import Tensors
from tsm_jax.training.mesh import AXIS


class Outcome(NamedTuple):
    """What a training step learns from clips.

    Attributes:
        gradients: of the mean loss, by name.
        batch_stats: the running statistics afterwards, by name.
        sums: `clip_sums`.
    """

    gradients: Tensors
    batch_stats: Tensors
    sums: dict[str, jax.Array]


def accumulate(compute: Callable[[Any], Outcome], batch: Any, parts: int, mesh: Mesh) -> Outcome:
    """The outcome of a batch, computed in `parts` of equal size.

    Args:
        compute: the outcome of one part. Running statistics start from the same values in each, so
            that their mean is what the whole batch moves them to.
        batch: a tree of arrays `[B, ...]`, split over the devices by clips.
        parts: how many; `B` is a multiple of it times the number of devices.
        mesh: the devices.
    """
    if parts == 1:
        return compute(batch)
    split = jax.tree.map(lambda array: _split(array, parts, mesh), batch)
    first = jax.tree.map(lambda array: array[0], split)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(compute, first)
    )

    def add(total: Outcome, part: Any) -> tuple[Outcome, None]:
        return jax.tree.map(jnp.add, total, compute(part)), None

    total, _ = jax.lax.scan(add, zeros, split)
    gradients, batch_stats = (
        {name: array / parts for name, array in tensors.items()}
        for tensors in (total.gradients, total.batch_stats)
    )
    return Outcome(gradients, batch_stats, total.sums)


def _split(array: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """`[B, ...]` to `[parts, B / parts, ...]`; every device gives clips to every part.

    So no clip moves to another device, and neighbours on a device stay neighbours.
    """
    by_device = array.reshape(mesh.size, parts, -1, *array.shape[1:])
    by_part = by_device.swapaxes(0, 1).reshape(parts, -1, *array.shape[1:])
    sharding = NamedSharding(mesh, PartitionSpec(None, AXIS))
    return jax.lax.with_sharding_constraint(by_part, sharding)
