"""Output of a run: console lines and a progress bar, metrics.jsonl, TensorBoard, other loggers."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol

from tsm_jax.errors import UserError
from tsm_jax.files import check_regular, reason, write_lines
from tsm_jax.terminal import printable, progress_bar

METRICS_FILE = "metrics.jsonl"


class Logger(Protocol):
    """A destination for the numbers of a run, besides metrics.jsonl."""

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Writes the numbers of `step`; an OSError ends the run with its message."""

    def close(self) -> None:
        """Is called after the last `write`."""


class RunLog:
    """Reports the progress of a run; silent in every process but the first.

    Args:
        first_step: the step at which this process starts. Lines of later steps, left by a process
            that was killed after its last checkpoint, are removed: they will be written again.
        validated: whether the validation at `first_step` is done. If not, it will be repeated, and
            its lines are removed as well.
        enabled: False in all processes but the first.
        loggers: receive the numbers besides metrics.jsonl and TensorBoard.

    Raises:
        UserError: a file cannot be written (also raised by `record`).
    """

    def __init__(
        self,
        workdir: str,
        *,
        first_step: int,
        validated: bool = True,
        enabled: bool = True,
        loggers: Sequence[Logger] = (),
    ):
        self._workdir = workdir
        self._enabled = enabled
        self._bar, self._bar_title = ExitStack(), ""
        if enabled:
            path = os.path.join(workdir, METRICS_FILE)
            with self._as_user_error():
                _remove_lines_after(path, first_step, validated)
                self._file = open(path, "ab", buffering=0)  # noqa: SIM115
                tensorboard = _TensorBoard(os.path.join(workdir, "tensorboard"), first_step)
            self._loggers = (tensorboard, *loggers)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._enabled:
            self._file.close()
            for logger in self._loggers:
                with suppress(OSError):  # everything is written, or the error was raised before
                    logger.close()

    def say(self, text: str) -> None:
        """Prints a line."""
        if self._enabled:
            print(printable(text), flush=True)

    def show(self, title: str, done: int, total: int, note: str = "") -> None:
        """Draws a progress bar with `note` beside it; a bar with another title is replaced."""
        if not self._enabled:
            return
        if title != self._bar_title:
            self._bar.close()
            self._update_bar = self._bar.enter_context(progress_bar(title))
            self._bar_title = title
        self._update_bar(done, total, note)

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Writes one line of metrics.jsonl and passes its numbers to the loggers.

        Args:
            kind: `train`, `val`, `best`, `bad_step` or `diverged`.
            step: number of completed optimizer steps.
            values: numbers (null if not finite), strings, lists of strings.
        """
        if not self._enabled:
            return
        values = {name: _finite(value) for name, value in values.items()}
        line = json.dumps({"kind": kind, "step": step, **values}) + "\n"
        numbers = {name: v for name, v in values.items() if isinstance(v, (int, float))}
        with self._as_user_error():
            if self._file.write(line.encode()) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for logger in self._loggers:
                logger.write(kind, step, numbers)

    @contextmanager
    def _as_user_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write the log in {self._workdir}: {reason(error)}; free some space or"
                " choose another --config.workdir, and run the same command again"
            ) from error


def _remove_lines_after(path: str, step: int, validated: bool) -> None:
    if not os.path.lexists(path):
        return
    check_regular(path, "the log")
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line.rstrip("\n") for line in file if _is_before(line, step, validated)]
    write_lines(path, lines)


def _is_before(line: str, step: int, validated: bool) -> bool:
    try:
        values = json.loads(line)
        to_do = not validated and values["kind"] in ("val", "best")
        return values["step"] < step or (values["step"] == step and not to_do)
    except (ValueError, KeyError, TypeError, RecursionError):  # cut off when a process was killed
        return False


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Field numbers of `Event`, `Summary` and `Summary.Value` (event.proto, summary.proto).
_WALL_TIME, _STEP, _FILE_VERSION, _SUMMARY, _SESSION_LOG = 1, 2, 3, 5, 7
_VALUE, _TAG, _SIMPLE_VALUE = 1, 1, 2
_SESSION_START = b"\x08\x01"  # SessionLog with status START

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # how a field is encoded


class _TensorBoard:
    """A TensorBoard event file; data is in the file by the time `write` returns.

    A record consists of the length of its body (uint64), a checksum of the length, the body and a
    checksum of the body, all little-endian. The body is a protocol buffer with the few fields that
    a run needs.

    Args:
        first_step: the step at which this process starts. TensorBoard discards what earlier files
            in the directory contain for later steps.

    Raises:
        OSError: the file cannot be written (also raised by `write`).
    """

    def __init__(self, directory: str, first_step: int):
        os.makedirs(directory, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{time.time_ns()}"
        self._file = open(os.path.join(directory, name), "xb")  # noqa: SIM115
        self._write(_field(_FILE_VERSION, b"brain.Event:2"))
        self._write(_field(_STEP, first_step + 1) + _field(_SESSION_LOG, _SESSION_START))

    def write(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        points = (
            _field(_TAG, f"{kind}/{name}".encode())
            + _key(_SIMPLE_VALUE, _FIXED32)
            + struct.pack("<f", value)
            for name, value in numbers.items()
        )
        summary = b"".join(_field(_VALUE, point) for point in points)
        self._write(_field(_STEP, step) + _field(_SUMMARY, summary))

    def close(self) -> None:
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
    """Encodes seven bits per byte, lowest first; the eighth bit marks that more bytes follow."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _checksum(data: bytes) -> bytes:
    """Returns the CRC-32C, masked as in TFRecord files so that data may contain checksums."""
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
