"""From clips to batches with grain: order, parallel reading, batching, padding.

What is read at which position of a run is a pure function of (seed, position). A run therefore
continues from its step number alone, on any number of hosts, workers and threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import grain
import numpy as np
from absl import flags

from tsm_jax.data.clips import Element, EvalClips, TrainClips

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Reading:
    """How clips are read in parallel; it never changes what is read.

    Attributes:
        threads: reading threads per process, 0 for one per core that the process may use.
        workers: worker processes, 0 for none.
    """

    threads: int = 0
    workers: int = 0

    def options(self, batch_size: int, num_views: int = 1) -> grain.ReadOptions:
        """Grain's options for batches of `batch_size` clips with V views."""
        threads = self.threads or _cores()
        # A whole batch is read ahead, so that the threads never wait while a step computes; less
        # of it where a clip has so many views that memory would not hold it.
        ahead = max(threads, (batch_size + 2 * threads) // num_views)
        return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)


def _cores() -> int:
    """Cores that this process may use: SLURM gives each of several on a host its own."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class HostShare:
    """Which part of every global batch this host reads: the `index`-th of `count` equal ones."""

    index: int = 0
    count: int = 1


ALONE = HostShare()


class TrainOrder:
    """The order of training clips: each epoch a new shuffle, cut to full batches.

    Args:
        num_clips: in the training list.
        batch_size: clips per global batch.
        seed: of the shuffles.
    """

    def __init__(self, num_clips: int, batch_size: int, seed: int):
        self._num_clips = num_clips
        self._batch_size = batch_size
        self._clips_per_epoch = num_clips // batch_size * batch_size
        self._shuffled = grain.MapDataset.range(num_clips).shuffle(seed=seed)

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(clip, epoch) at a position of the run, counted in clips from 0."""
        epoch, offset = divmod(position, self._clips_per_epoch)
        # Grain reshuffles whenever an index passes the length of the data.
        clip = self._shuffled[epoch * self._num_clips + offset]
        assert clip is not None, "a range has no gaps"
        return int(clip), epoch

    def batch(self, step: int) -> np.ndarray:
        """The clips of a global batch, int64 `[B]`."""
        positions = range(step * self._batch_size, (step + 1) * self._batch_size)
        return np.array([self[position][0] for position in positions])


def train_batches(
    clips: TrainClips,
    order: TrainOrder,
    *,
    batch_size: int,
    steps: range,
    reading: Reading,
    host: HostShare = ALONE,
) -> Iterator[Batch]:
    """This host's part of the training batches of `steps`.

    Args:
        clips: reads a clip.
        order: of the clips.
        batch_size: clips per global batch, a multiple of `host.count`.
        steps: from the first step to read to behind the last.
        reading: parallelism.
        host: this host's share.

    Returns:
        An iterator over `{"video": uint8 [B, 1, T, S, S, 3], "label": int32 [B], "mask": bool [B],
        "index": int64 [B]}` with B = `batch_size / host.count`.
    """
    local_size = batch_size // host.count

    def read(local_position: int) -> Element:
        step, offset = divmod(local_position, local_size)
        position = (steps.start + step) * batch_size + host.index * local_size + offset
        return clips.read(*order[position])

    return _batches(len(steps) * local_size, read, local_size, reading)


def eval_batches(
    clips: EvalClips,
    *,
    batch_size: int,
    reading: Reading,
    host: HostShare = ALONE,
) -> Iterator[Batch]:
    """Every clip exactly once, in order; the last batch is padded with `mask` False.

    All hosts get the same number of batches. Arguments and result as in `train_batches`, but the
    video is uint8 `[B, V, T, S, S, 3]` with V views and S pixels by the clips' protocol.
    """
    num_clips = len(clips.source)
    local_size = batch_size // host.count
    num_batches = -(-num_clips // batch_size)

    def read(local_position: int) -> Element:
        step, offset = divmod(local_position, local_size)
        index = step * batch_size + host.index * local_size + offset
        return clips.read(index) if index < num_clips else clips.padding()

    num_views = clips.protocol.num_views
    return _batches(num_batches * local_size, read, local_size, reading, num_views)


def _batches(
    length: int, read, local_size: int, reading: Reading, num_views: int = 1
) -> Iterator[Batch]:
    options = reading.options(local_size, num_views)
    dataset = grain.MapDataset.range(length).map(read).to_iter_dataset(options)
    if reading.workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags
        options = grain.MultiprocessingOptions(reading.workers, per_worker_buffer_size=8)
        dataset = dataset.mp_prefetch(options)
    # Batched behind the workers, so that their number does not change what a batch holds.
    return iter(dataset.batch(local_size))
