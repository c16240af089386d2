"""Records of a packed folder, intact and damaged."""

from __future__ import annotations

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from tsm_jax.data.lists import ClipEntry
from tsm_jax.data.packed import PackedSource
from tsm_jax.data.prepare.extract import encode_frame
from tsm_jax.errors import UnreadableClipError

Example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]


def make(pictures: list[bytes], name: str = "frames") -> bytes:
    example = Example()
    feature = example.features.feature
    feature[name].bytes_list.value.extend(pictures)
    feature["label"].int64_list.value.extend([-1, 2**40])
    return example.SerializeToString(deterministic=True)


def read(record: bytes) -> list[np.ndarray]:
    source = PackedSource([ClipEntry("a/clip", 0, 4)], "packed", [record])
    return list(source.read(0, lambda num_frames: np.array([0, 1, num_frames - 1])))


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [encode_frame(np.full((16, 24, 3), 60 * i, np.uint8), 0, 95) for i in range(4)]


def test_frames_are_those_asked_for(pictures):
    assert [round(frame.mean() / 60) for frame in read(make(pictures))] == [0, 1, 3]


@pytest.mark.parametrize("record", [b"", make([]), make([b"x"], "frame"), make([b"x"])[:0]])
def test_a_record_without_frames_is_named(record):
    with pytest.raises(UnreadableClipError, match=r"packed: a/clip: the record has no frames"):
        read(record)


def test_damaged_records_are_errors_or_images(pictures):
    """The only error names the clip; if the record can be read, all frames are images."""
    rng, whole = np.random.default_rng(0), make(pictures)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole[: rng.integers(1, len(whole))])
        for position in rng.integers(0, len(damaged), rng.integers(0, 3)):
            damaged[position] = rng.integers(256)
        try:
            frames = read(bytes(damaged))
        except UnreadableClipError as error:
            refused += "packed: a/clip" in str(error)
        else:
            assert len(frames) == 3
    assert refused > 250
