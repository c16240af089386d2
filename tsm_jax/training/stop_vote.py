"""All processes of a run stop at the same step, when any of them is told to."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh

from tsm_jax.training.mesh import replicated, split_by_clips
from tsm_jax.training.preemption import Preemption


class StopVote:
    """Asks every process at every step.

    Args:
        preemption: of this process.
        mesh: the devices of all processes.
    """

    def __init__(self, preemption: Preemption, mesh: Mesh):
        self._preemption = preemption
        self._mesh = mesh
        self._alone = jax.process_count() == 1
        self._pending: jax.Array | None = None
        self._any = jax.jit(lambda flags: flags.any(), out_shardings=replicated(mesh))

    def stop(self) -> bool:
        """Whether to stop now. Every process calls this equally often.

        With several processes this is the answer to the call before: nobody waits for a vote.
        """
        if self._alone:
            return self._preemption.noted
        flags = np.full(len(self._mesh.local_devices), self._preemption.noted)
        before, self._pending = (
            self._pending,
            self._any(jax.make_array_from_process_local_data(split_by_clips(self._mesh), flags)),
        )
        return before is not None and bool(before)
