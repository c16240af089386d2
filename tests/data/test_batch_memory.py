"""Batch memory is reused, but never while anything refers to it."""

from __future__ import annotations

import gc
import weakref

import jax
import numpy as np
import pytest

from tsm_jax.data.pipeline import BatchMemory

SHAPE = (4, 1, 2, 8, 8, 3)


def fill(memory: BatchMemory, batch: int) -> np.ndarray:
    """Makes a batch whose clips contain only the number of the batch."""
    clips = []
    for clip in range(SHAPE[0]):
        place = memory.place(batch, clip)
        place[...] = batch
        clips.append((batch, {"video": place, "index": np.array(clip)}))
    stacked = memory.stack(clips)
    assert stacked["index"].tolist() == [0, 1, 2, 3]
    return stacked["video"]


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_reused_when_nothing_holds_it():
    memory = BatchMemory(SHAPE)
    addresses = {address(fill(memory, batch)) for batch in range(6)}
    assert len(addresses) == 1


VIEWS = {
    "array": lambda video: video,
    "clip": lambda video: video[2],
    "view of a view": lambda video: video[1:][0].reshape(-1)[5:9],
    "buffer": lambda video: memoryview(video),
    "from buffer": lambda video: np.frombuffer(memoryview(video).cast("B"), np.uint8),
    "jax": lambda video: jax.device_put(video),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_memory_is_not_reused_while_a_view_is_held(view):
    memory = BatchMemory(SHAPE)
    held = [view(fill(memory, batch)) for batch in range(3)]
    for batch in range(3, 6):
        fill(memory, batch)
    for batch, array in enumerate(held):
        assert np.all(np.asarray(array) == batch)


def test_batches_may_be_begun_in_any_order():
    memory = BatchMemory(SHAPE)
    memory.place(1, 0)[...] = 9
    assert np.all(fill(memory, 0) == 0)
    assert np.all(memory.place(1, 0) == 9)


def test_memory_is_freed_with_its_owner():
    memory = BatchMemory(SHAPE)
    video = fill(memory, 0)
    gone = weakref.ref(video)
    del memory, video
    gc.collect()
    assert gone() is None
