"""Turns clips into batches with grain: order, parallel reading, batching, padding.

The clip at a position of a run is a pure function of (seed, position). A run can therefore continue
from its step number alone, on any number of hosts, workers and threads.
"""

from __future__ import annotations

import functools
import math
import mmap
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import grain
import numpy as np
from absl import flags

from tsm_jax.data.sources import Element, EvalClips, TrainClips
from tsm_jax.host import usable_cores

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Reading:
    """How clips are read in parallel, which never changes what is read.

    Attributes:
        threads: Reading threads per process; 0 for an equal share of the usable cores.
        workers: Worker processes; 0 to read in the threads of this process.
    """

    threads: int = 0
    workers: int = 0

    def options(self, batch_size: int, num_views: int = 1) -> grain.ReadOptions:
        """Returns grain's options for batches of `batch_size` clips with `num_views` views."""
        threads = self.threads or max(1, usable_cores() // max(1, self.workers))
        # A whole batch is read ahead, so that the threads never wait while a step computes; less
        # if clips have many views, which would not fit into memory.
        ahead = max(threads, (batch_size + 2 * threads) // num_views)
        return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)


@dataclass(frozen=True)
class HostShare:
    """The part of every global batch that this host reads: the `index`-th of `count` equal ones."""

    index: int = 0
    count: int = 1


ALONE = HostShare()


# Key of the random order. The random draws of clips have keys from 0 on.
_ORDER = 2**32 - 1


@functools.lru_cache(maxsize=2)  # hosts and threads are at most one epoch apart
def _shuffle(num_clips: int, seed: int, epoch: int) -> np.ndarray:
    # Not grain's own shuffle, which takes 26 ms per epoch even for the shortest list.
    return np.random.default_rng((seed, epoch, _ORDER)).permutation(num_clips)


class TrainOrder:
    """The order of training clips: a new shuffle in each epoch, cut to full (global) batches."""

    def __init__(self, num_clips: int, batch_size: int, seed: int):
        self._num_clips = num_clips
        self._batch_size = batch_size
        self._clips_per_epoch = num_clips // batch_size * batch_size
        self._seed = seed

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Returns (clip, epoch) at a position of the run, counted in clips from 0."""
        epoch, offset = divmod(position, self._clips_per_epoch)
        return int(_shuffle(self._num_clips, self._seed, epoch)[offset]), epoch

    def batch(self, step: int) -> np.ndarray:
        """Returns the clips of the global batch of a step, int64 `[B]`."""
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
    """Reads this host's part of the training batches of `steps`, a half-open range.

    Args:
        batch_size: Clips per global batch, a multiple of `host.count`.

    Returns:
        An iterator over `{"video": uint8 [B, 1, T, S, S, 3], "label": int32 [B], "mask": bool [B],
        "index": int64 [B]}` with B = `batch_size / host.count`.
    """
    local_size = batch_size // host.count

    def read(step: int, offset: int, out: np.ndarray | None) -> Element:
        position = (steps.start + step) * batch_size + host.index * local_size + offset
        return clips.read(*order[position], out)

    return _batches(read, len(steps), (local_size, *clips.shape), reading)


def eval_batches(
    clips: EvalClips, *, batch_size: int, reading: Reading, host: HostShare = ALONE
) -> Iterator[Batch]:
    """Reads every clip exactly once, in order; padding in the last batch has a False `mask`.

    All hosts get the same number of batches. Arguments and result are as for `train_batches`, but
    the video is uint8 `[B, V, T, S, S, 3]`: the clips' protocol decides the V views and S pixels.
    """
    num_clips = len(clips.source)
    local_size = batch_size // host.count
    num_batches = -(-num_clips // batch_size)

    def read(step: int, offset: int, out: np.ndarray | None) -> Element:
        index = step * batch_size + host.index * local_size + offset
        return clips.read(index, out) if index < num_clips else clips.padding(out)

    return _batches(read, num_batches, (local_size, *clips.shape), reading)


# Reads one clip of a batch: (batch, clip in the batch, memory for its video or None).
ReadClip = Callable[[int, int, np.ndarray | None], Element]


def _batches(
    read: ReadClip, num_batches: int, shape: tuple[int, ...], reading: Reading
) -> Iterator[Batch]:
    """Reads `num_batches` batches of `shape`, from batch 0 on."""
    options = reading.options(shape[0], num_views=shape[1])
    if reading.workers:
        return _batches_of_workers(read, num_batches, shape[0], reading.workers, options)
    memory = BatchMemory(shape)

    def read_into_place(position: int) -> tuple[int, Element]:
        batch, clip = divmod(position, shape[0])
        return batch, read(batch, clip, memory.place(batch, clip))

    clips = grain.MapDataset.range(num_batches * shape[0]).map(read_into_place)
    return iter(clips.to_iter_dataset(options).batch(shape[0], batch_fn=memory.stack))


def _batches_of_workers(
    read: ReadClip, num_batches: int, batch_size: int, workers: int, options: grain.ReadOptions
) -> Iterator[Batch]:
    """Reads the same batches, each in one worker process; the workers take turns."""

    def read_for_worker(position: int) -> Element | None:
        # Grain deals positions out to the workers in turn; `turn` counts those of one worker.
        turn, worker = divmod(position, workers)
        round_, clip = divmod(turn, batch_size)
        batch = round_ * workers + worker
        return read(batch, clip, None) if batch < num_batches else None  # grain skips None

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags
    rounds = -(-num_batches // workers)
    clips = grain.MapDataset.range(rounds * workers * batch_size).map(read_for_worker)
    batches = clips.to_iter_dataset(options).batch(batch_size)
    # Workers stack the batches directly in memory that they share with this process.
    return iter(batches.mp_prefetch(grain.MultiprocessingOptions(workers)))


class BatchMemory:
    """Memory for batches of uint8 `shape`, reused once nothing refers to an earlier batch.

    A batch of 16 clips takes 19 MB. Fresh memory of that size costs a page fault every 4 kB, which
    takes longer than cropping and resizing the clips, and stacking copies every clip once more.
    Here, every clip is written directly to its place in the batch.
    """

    def __init__(self, shape: Sequence[int]):
        self._shape = tuple(shape)
        self._free: list[mmap.mmap] = []
        self._begun: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def place(self, batch: int, clip: int) -> np.ndarray:
        """Returns the memory for the `clip`-th clip of the `batch`-th batch.

        Every batch is kept until `stack` takes it. Thread-safe.
        """
        with self._lock:
            if batch not in self._begun:
                self._begun[batch] = self._new_batch()
            return self._begun[batch][clip]

    def stack(self, clips: Sequence[tuple[int, Element]]) -> Element:
        """Makes a batch from (batch, element) of all its clips, whose videos are in place."""
        with self._lock:
            videos = self._begun.pop(clips[0][0])
        names = [name for name in clips[0][1] if name != "video"]
        rest = {name: np.stack([element[name] for _, element in clips]) for name in names}
        return {"video": videos, **rest}

    def _new_batch(self) -> np.ndarray:
        if self._free:
            block = self._free.pop()
        else:
            block = mmap.mmap(-1, max(1, math.prod(self._shape)))
            # Huge pages, where the system offers them: 1/500 of the page faults.
            with suppress(AttributeError, OSError):
                block.madvise(mmap.MADV_HUGEPAGE)
        # Views keep this array alive (NumPy does not skip it in favour of the block): once it is
        # gone, the block is free.
        batch = np.ndarray(self._shape, np.uint8, block)
        weakref.finalize(batch, self._free.append, block).atexit = False
        return batch
