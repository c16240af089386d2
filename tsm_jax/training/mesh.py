"""Data parallelism: one mesh axis over all devices; arrays are replicated or split by clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tsm_jax.errors import UserError

AXIS = "data"


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over jax `devices`, by default every device of every process."""
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_by_clips(mesh: Mesh) -> NamedSharding:
    """Device i holds the i-th part of the first axis."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def check_batch_size(key: str, batch_size: int, mesh: Mesh) -> None:
    """Raises a UserError if a batch does not divide over the devices.

    Args:
        key: the recipe's key, for the message.
        batch_size: clips in a global batch.
        mesh: the devices.
    """
    if batch_size % mesh.size:
        raise UserError(
            f"config.{key} is {batch_size}: it must be a multiple of the {mesh.size} devices"
        )


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
    """Sends this process's part of a batch to its devices, without waiting for the copy."""
    sharding = split_by_clips(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }
