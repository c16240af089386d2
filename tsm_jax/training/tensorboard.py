"""TensorBoard's event files: records of the few fields of its `Event` message that a run fills.

A record is the length of its body (uint64), a checksum of that, the body and a checksum of it, all
little-endian; the body is a protocol buffer.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping

# Field numbers of `Event`, of its `Summary` and of that one's `Value` (event.proto, summary.proto).
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY, _SESSION_LOG = 1, 2, 3, 5, 7
_VALUE, _TAG, _SIMPLE_VALUE = 1, 1, 2
_SESSION_START = b"\x08\x01"  # SessionLog with status START

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # how a field is encoded


class TensorBoard:
    """An event file in a directory; what is written is in the file before `write` returns.

    Args:
        directory: created if it is not there.
        first_step: where this process starts. TensorBoard forgets what earlier files of the
            directory say of the steps after it.

    Raises:
        OSError: it cannot be written, here and in `write`.
    """

    def __init__(self, directory: str, first_step: int):
        os.makedirs(directory, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{time.time_ns()}"
        self._file = open(os.path.join(directory, name), "xb")  # noqa: SIM115
        self._write(_field(_FILE_VERSION, b"brain.Event:2"))
        self._write(_field(_STEP, first_step + 1) + _field(_SESSION_LOG, _SESSION_START))

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Adds a point to the curve `kind/name` of each number."""
        points = (
            _field(_TAG, f"{kind}/{name}".encode())
            + _key(_SIMPLE_VALUE, _FIXED32)
            + struct.pack("<f", value)
            for name, value in numbers.items()
        )
        summary = b"".join(_field(_VALUE, point) for point in points)
        self._write(_field(_STEP, step) + _field(_SUMMARY, summary))

    def close(self) -> None:
        """After the last of them."""
        self._file.close()

    def _write(self, fields: bytes) -> None:
        body = _key(_WALL_TIME, _FIXED64) + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(body))
        self._file.write(length + _checksum(length) + body + _checksum(body))
        self._file.flush()


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _key(number, _VARINT) + _varint(value)
    return _key(number, _BYTES) + _varint(len(value)) + value


def _key(number: int, encoding: int) -> bytes:
    return _varint(number << 3 | encoding)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _checksum(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted so that a checksum of checksums is none of zeros."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_OF_BYTE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC_OF_BYTE = [_crc_of_byte(byte) for byte in range(256)]
