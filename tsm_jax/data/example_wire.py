"""The bytes of one feature of a serialized `tf.train.Example`, without copying the others.

Protocol Buffers' own parser copies a whole record, 64 pictures, while it holds Python's lock; the
eight that are wanted need not wait for that.

Reference: the encoding, https://protobuf.dev/programming-guides/encoding/, and TensorFlow's
core/example/example.proto and feature.proto.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _LENGTH_DELIMITED = 0, 2  # wire types
_FEATURES, _ENTRY, _KEY, _VALUE, _BYTES_LIST, _ITEM = 1, 1, 1, 2, 1, 1  # field numbers


def bytes_of_feature(record: bytes, name: str) -> list[memoryview]:
    """The values of a `BytesList` feature, as views of the record; none if it is not there.

    Args:
        record: a serialized `tf.train.Example`.
        name: of the feature.

    Raises:
        ValueError: the record is broken.
    """
    data, wanted = memoryview(record), name.encode()
    for features in _fields(data, _FEATURES):
        for entry in _fields(features, _ENTRY):
            if any(key == wanted for key in _fields(entry, _KEY)):
                lists = (x for value in _fields(entry, _VALUE) for x in _fields(value, _BYTES_LIST))
                return [item for found in lists for item in _fields(found, _ITEM)]
    return []


def _fields(message: memoryview, number: int) -> Iterator[memoryview]:
    """The length-delimited fields of that number."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position, end)
        wire_type = tag & 7
        if wire_type == _VARINT:
            _, position = _varint(message, position, end)
        elif wire_type == _LENGTH_DELIMITED:
            length, start = _varint(message, position, end)
            position = start + length
            if position > end:
                raise ValueError("a field is longer than its message")
            if tag >> 3 == number:
                yield message[start:position]
        else:
            raise ValueError(f"an Example has no fields of wire type {wire_type}")


def _varint(message: memoryview, position: int, end: int) -> tuple[int, int]:
    """The number at a position, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if position == end:
            raise ValueError("a number is cut off")
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number is too long")
