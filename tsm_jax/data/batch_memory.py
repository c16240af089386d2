"""Memory that clips are written into batch by batch, and that is used again.

A batch of 16 clips has 19 MB. Fresh memory of that size costs a page fault every 4 kB, which takes
longer than cropping and resizing the clips; and clips that are stacked are copied once more. Here
every clip is written to its place in the batch, in memory that earlier batches have used.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
import weakref
from collections.abc import Sequence

import numpy as np

from tsm_jax.data.clips import Element


class BatchMemory:
    """Places for the clips of a few batches at a time.

    Args:
        shape: of a batch, uint8.
    """

    def __init__(self, shape: Sequence[int]):
        self._shape = tuple(shape)
        self._free: list[mmap.mmap] = []
        self._begun: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def place(self, batch: int, clip: int) -> np.ndarray:
        """Where the `clip`-th clip of the `batch`-th batch is to be written.

        Every batch is asked for until it is taken by `stack`; safe from several threads.
        """
        with self._lock:
            if batch not in self._begun:
                self._begun[batch] = self._new_batch()
            return self._begun[batch][clip]

    def stack(self, clips: Sequence[tuple[int, Element]]) -> Element:
        """One batch of the elements of all its clips, whose videos are in their places.

        Args:
            clips: (batch, element); the batch is the same for all.

        Returns:
            The elements' values, stacked. The video's memory is used again when neither this array
            nor a view of it is left.
        """
        with self._lock:
            videos = self._begun.pop(clips[0][0])
        names = [name for name in clips[0][1] if name != "video"]
        rest = {name: np.stack([element[name] for _, element in clips]) for name in names}
        return {"video": videos, **rest}

    def _new_batch(self) -> np.ndarray:
        block = self._free.pop() if self._free else _allocate(math.prod(self._shape))
        # Every view refers to this array, and NumPy keeps it between them and the block.
        batch = np.ndarray(self._shape, np.uint8, block)
        weakref.finalize(batch, self._free.append, block).atexit = False
        return batch


def _allocate(size: int) -> mmap.mmap:
    block = mmap.mmap(-1, max(1, size))
    # Large pages where the system has them to give: a five-hundredth of the faults.
    with contextlib.suppress(AttributeError, OSError):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block
