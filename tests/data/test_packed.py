"""The feature that is read by hand is the one that Protocol Buffers reads."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from tsm_jax.data.packed import bytes_of_feature

Example = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]


def make(pictures: list[bytes]) -> bytes:
    example = Example()
    feature = example.features.feature
    feature["a"].float_list.value.extend([1.5, 2.5])
    feature["frames"].bytes_list.value.extend(pictures)
    feature["label"].int64_list.value.extend([-1, 2**40])
    feature["name"].bytes_list.value.append("b b/ä.mp4".encode())
    return example.SerializeToString(deterministic=True)


def random_pictures(rng: np.random.Generator, count: int) -> list[bytes]:
    # Lengths around the sizes at which the encoding of a length grows.
    sizes = rng.choice([0, 1, 126, 127, 128, 129, 16383, 16384, 16385], count)
    return [rng.bytes(size) for size in sizes]


@pytest.mark.parametrize("count", [0, 1, 2, 64])
def test_equals_protocol_buffers(count):
    pictures = random_pictures(np.random.default_rng(count), count)
    record = make(pictures)
    assert [bytes(value) for value in bytes_of_feature(record, "frames")] == pictures
    assert [bytes(v) for v in bytes_of_feature(record, "name")] == ["b b/ä.mp4".encode()]
    assert bytes_of_feature(record, "label") == bytes_of_feature(record, "frame") == []


def test_copies_nothing():
    record = make([b"x" * 1000])
    (value,) = bytes_of_feature(record, "frames")
    assert value.obj is record


def test_any_order_of_the_features_is_read():
    record, extra = make([b"one", b"two"]), Example()
    extra.features.feature["other"].bytes_list.value.append(b"three")
    joined = extra.SerializeToString() + record  # one message behind another merges them
    assert bytes_of_feature(joined, "frames") == [b"one", b"two"]
    assert bytes_of_feature(joined, "other") == [b"three"]


def test_damaged_records_end_in_an_error_or_in_a_reading():
    """Where Protocol Buffers reads, this reads the same or refuses; nothing else is raised."""
    rng = np.random.default_rng(0)
    whole = make([b"abc" * 50, b"", b"d" * 200])
    refused = same = 0
    for _ in range(2000):
        cut = rng.integers(1, len(whole)) if rng.random() < 0.5 else len(whole)
        damaged = bytearray(whole[:cut])
        for position in rng.integers(0, len(damaged), rng.integers(0, 3)):
            damaged[position] = rng.integers(256)
        try:
            values = bytes_of_feature(bytes(damaged), "frames")
        except ValueError:
            refused += 1
            continue
        assert sum(map(len, values)) <= len(damaged)
        try:
            expected = Example.FromString(bytes(damaged))
        except DecodeError:
            continue
        if "frames" in expected.features.feature:
            same += values == list(expected.features.feature["frames"].bytes_list.value)
    assert refused > 100 and same > 100


@pytest.mark.parametrize(
    "record", [b"\x0a", b"\x0a\x05ab", b"\xff" * 12, b"\x0d\x00\x00\x00\x00", b"\x08\x80"]
)
def test_broken_records_are_refused(record):
    with pytest.raises(ValueError):
        bytes_of_feature(record, "frames")
