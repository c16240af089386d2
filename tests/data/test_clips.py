"""Clips: draws are keyed by (seed, epoch, clip); unreadable clips raise or are replaced."""

from __future__ import annotations

import numpy as np
import pytest

from tsm_jax.data.protocols import eval_protocol
from tsm_jax.data.sources import EvalClips, TrainClips
from tsm_jax.errors import UnreadableClipError, UserError


class Source:
    """Random images of different sizes; clips in `broken` cannot be read."""

    def __init__(self, clips=12, broken=()):
        self.clips, self.broken = clips, broken

    def __len__(self):
        return self.clips

    def label(self, index):
        return index % 3

    def name(self, index):
        return f"clip{index}"

    def read(self, index, choose):
        if index in self.broken:
            raise UnreadableClipError(f"clip{index} is broken")
        rng = np.random.default_rng(index)
        height, width = rng.integers(40, 60, 2)
        frames = rng.integers(0, 256, (30, height, width, 3), dtype=np.uint8)
        return frames[choose(len(frames))]


def train_clips(seed=1, **arguments):
    arguments = {"source": Source(), "num_segments": 4, "crop_size": 32, **arguments}
    return TrainClips(seed=seed, flip=True, **arguments)


def test_an_element_has_the_types_and_shapes_of_the_contract():
    element = train_clips().read(5, epoch=0)
    assert {name: (value.dtype.name, value.shape) for name, value in element.items()} == {
        "video": ("uint8", (1, 4, 32, 32, 3)),
        "label": ("int32", ()),
        "mask": ("bool", ()),
        "index": ("int64", ()),
    }
    assert (element["label"], element["mask"], element["index"]) == (2, True, 5)


def test_a_clip_is_decided_by_seed_epoch_and_index_alone():
    first = train_clips().read(5, epoch=2)["video"]
    clips = train_clips()
    clips.read(6, epoch=2), clips.read(5, epoch=0)
    np.testing.assert_array_equal(clips.read(5, epoch=2)["video"], first)
    others = [
        clips.read(5, epoch=3)["video"],
        train_clips(seed=2).read(5, epoch=2)["video"],
    ]
    assert not any(np.array_equal(other, first) for other in others)


def test_half_of_the_clips_are_mirrored():
    plain, mirrored = TrainClips(Source(), 4, 32, flip=False, seed=1), train_clips()
    flips = 0
    for epoch in range(100):
        a, b = (clips.read(0, epoch)["video"] for clips in (plain, mirrored))
        is_flipped = np.array_equal(a[..., ::-1, :], b)
        assert is_flipped != np.array_equal(a, b)
        flips += is_flipped
    assert 35 <= flips <= 65


def test_an_unreadable_clip_stops_training_and_names_the_option():
    with pytest.raises(UserError, match=r"clip5 is broken .*config\.data\.on_error=skip"):
        train_clips(source=Source(broken=(5,))).read(5, epoch=0)


def test_an_unreadable_clip_is_replaced_by_the_same_other_one_each_time(caplog):
    clips = train_clips(source=Source(broken=(5, 7)), skip_unreadable=True)
    elements = [clips.read(5, epoch=0) for _ in range(2)]
    index = int(elements[0]["index"])
    assert index not in (5, 7)
    np.testing.assert_array_equal(elements[0]["video"], elements[1]["video"])
    np.testing.assert_array_equal(elements[0]["video"], clips.read(index, epoch=0)["video"])
    assert elements[0]["label"] == index % 3
    assert f"unreadable clip replaced by clip{index}: clip5 is broken" in caplog.text
    indices = {int(clips.read(5, epoch)["index"]) for epoch in range(20)}
    assert len(indices) > 3  # no clip is favoured


def test_gives_up_when_nothing_can_be_read():
    clips = train_clips(source=Source(broken=range(12)), skip_unreadable=True)
    with pytest.raises(UserError, match="20 attempts to replace it with another clip failed"):
        clips.read(5, epoch=0)


def test_evaluation_never_replaces():
    protocol = eval_protocol("test", short_side=40, crop_size=32)
    clips = EvalClips(Source(broken=(5,)), 4, protocol)
    with pytest.raises(UnreadableClipError, match="clip5 is broken"):
        clips.read(5)
    assert clips.read(4)["video"].shape == clips.padding()["video"].shape
    assert not clips.padding()["mask"]


def test_a_protocol_that_does_not_exist():
    with pytest.raises(UserError, match="choose one of test, paddle_predict, paddle_dense"):
        eval_protocol("dense", short_side=40, crop_size=32)


def test_colours_and_crops_have_draws_of_their_own():
    plain = train_clips().read(5, epoch=2)["video"]
    jittered = train_clips(color_jitter=0.4)
    first = jittered.read(5, epoch=2)["video"]
    np.testing.assert_array_equal(jittered.read(5, epoch=2)["video"], first)
    # Crop and flip are the same; only the colours change.
    assert np.corrcoef(plain.ravel(), first.ravel())[0, 1] > 0.8
    assert not np.array_equal(plain, first)
    assert not np.array_equal(jittered.read(5, epoch=3)["video"], first)
