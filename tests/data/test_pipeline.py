"""Batches are the same however they are read, and every clip is in its place."""

from __future__ import annotations

import cloudpickle
import numpy as np
import pytest

from tsm_jax.data import pipeline
from tsm_jax.data.lists import ClipEntry
from tsm_jax.data.pipeline import HostShare, Reading, TrainOrder, eval_batches, train_batches
from tsm_jax.data.protocols import eval_protocol
from tsm_jax.data.sources import EvalClips, SyntheticSource, TrainClips, VideoSource
from tsm_jax.errors import UnreadableClipError, UserError

CLIPS, BATCH, STEPS = 22, 4, 12  # 5 steps per epoch, each of which leaves out two clips
TWO_THREADS, ALONE = Reading(threads=2), HostShare()


class Numbered(SyntheticSource):
    """Clip i has grey level i; clip 13 can be made unreadable."""

    def read(self, index, choose):
        if index == 13 and self.num_frames == 0:
            raise UnreadableClipError("clip 13 is broken")
        frame = np.full((self.height, self.width, 3), index, np.uint8)
        return [frame] * len(choose(16))


def source(broken=False):
    return Numbered(CLIPS, 3, height=40, width=50, num_frames=0 if broken else 16)


def read_train(steps=range(STEPS), reading=TWO_THREADS, host=ALONE):
    clips = TrainClips(source(), num_segments=2, crop_size=32, flip=True, seed=7)
    order = TrainOrder(CLIPS, BATCH, seed=7)
    return list(
        train_batches(clips, order, batch_size=BATCH, steps=steps, reading=reading, host=host)
    )


def read_eval(batch_size=BATCH, host=ALONE, broken=False):
    protocol = eval_protocol("test", short_side=36, crop_size=32)
    clips = EvalClips(source(broken), num_segments=2, protocol=protocol)
    reading = TWO_THREADS
    return list(eval_batches(clips, batch_size=batch_size, reading=reading, host=host))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.fixture(scope="module")
def train():
    return read_train()


def test_a_batch_has_the_types_and_shapes_of_the_contract(train):
    assert {name: (value.dtype.name, value.shape) for name, value in train[0].items()} == {
        "video": ("uint8", (BATCH, 1, 2, 32, 32, 3)),
        "label": ("int32", (BATCH,)),
        "mask": ("bool", (BATCH,)),
        "index": ("int64", (BATCH,)),
    }
    for batch in train:
        np.testing.assert_array_equal(batch["video"][:, 0, 0, 0, 0, 0], batch["index"])
        np.testing.assert_array_equal(batch["label"], batch["index"] % 3)
        assert batch["mask"].all()


@pytest.mark.parametrize("reading", [Reading(threads=1), Reading(threads=5)])
def test_threads_do_not_change_batches(train, reading):
    assert_same(read_train(reading=reading), train)


def test_worker_processes_do_not_change_batches(train):
    assert_same(read_train(reading=Reading(threads=1, workers=2)), train)


@pytest.mark.parametrize("start", [1, 5, 7])
def test_continues_anywhere(train, start):
    assert_same(read_train(steps=range(start, STEPS)), train[start:])


def test_hosts_share_each_batch(train):
    parts = [read_train(host=HostShare(index, 2)) for index in range(2)]
    assert_same(
        [
            {name: np.concatenate([first[name], second[name]]) for name in first}
            for first, second in zip(*parts, strict=True)
        ],
        train,
    )


def test_an_epoch_shows_each_clip_at_most_once_and_epochs_differ(train):
    epochs = [np.concatenate([b["index"] for b in train[s : s + 5]]) for s in (0, 5)]
    for indices in epochs:
        assert len(set(indices.tolist())) == 20
    assert epochs[0].tolist() != epochs[1].tolist()
    seen = {TrainOrder(CLIPS, BATCH, seed=7)[position][0] for position in range(20 * 20)}
    assert seen == set(range(CLIPS))  # the clips that are left out change with the epoch


def test_the_order_determines_what_a_batch_holds(train):
    order = TrainOrder(CLIPS, BATCH, seed=7)
    for step, batch in enumerate(train):
        np.testing.assert_array_equal(order.batch(step), batch["index"])


@pytest.mark.parametrize("batch_size", [1, 4, 11, 22, 30])
def test_evaluation_shows_each_clip_exactly_once(batch_size):
    batches = read_eval(batch_size)
    indices = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    assert indices.tolist() == list(range(CLIPS))
    assert all(len(batch["mask"]) == batch_size for batch in batches)


def test_hosts_share_the_evaluation_and_get_equally_many_batches():
    parts = [read_eval(8, HostShare(index, 4)) for index in range(4)]
    assert {len(part) for part in parts} == {3}
    indices = [batch["index"][batch["mask"]] for part in parts for batch in part]
    assert sorted(np.concatenate(indices).tolist()) == list(range(CLIPS))


def test_an_unreadable_clip_ends_the_evaluation():
    with pytest.raises(UserError, match="clip 13 is broken"):
        read_eval(broken=True)


def test_a_list_is_sent_to_a_worker_once():
    """What grain sends to a worker process contains each path only once."""
    entries = [ClipEntry(f"clip-{i:05}", 0, None) for i in range(100)]
    clips = TrainClips(VideoSource(entries), num_segments=2, crop_size=32, flip=True, seed=7)
    order = TrainOrder(100, 4, seed=7)
    sent = []

    class Spy:
        def map(self, read):
            sent.append(cloudpickle.dumps(read))
            raise StopIteration

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.grain.MapDataset, "range", lambda *_: Spy())
        workers = Reading(workers=2)
        with pytest.raises(StopIteration):
            train_batches(clips, order, batch_size=4, steps=range(2), reading=workers)
    assert sent[0].count(b"clip-00042") == 1
