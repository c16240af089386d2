"""An unpickler that cannot execute code, and the opening of the files that it reads.

A pickle is a program. Python's usual unpickler can be limited to a few names (`find_class`), but a
hostile file could still make it allocate gigabytes (a high memo index) or hang (tuples of tuples as
a dictionary key), and it copies tensors before the last instruction has been checked. This module
therefore extends the standard library's Python implementation, `pickle._Unpickler`, and replaces
its table of instructions by an allow list. Nothing named in a file is imported or called, limits
are checked before memory is allocated, and the bytes of tensors are skipped, so refusing a file of
any size takes a fraction of a second.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

from tsm_jax.errors import UserError
from tsm_jax.files import check_regular, reason
from tsm_jax.terminal import printable
from tsm_jax.weights.pickle_values import (
    Array,
    Blob,
    DType,
    Function,
    Opaque,
    Refused,
    quoted,
)

# The beginning of PyTorch files before 1.6: the pickle of their magic number.
TORCH_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."

MAX_READS = 300_000  # one to three per instruction; ResNet-152 with its optimizer needs 43,000
MAX_INLINE_BYTES = 256  # longer text and bytes become a `Blob`
MAX_INLINE_TOTAL = 4 * 2**20
# A file can choose n numbers whose hashes collide, which takes O(n^2) time as dictionary keys.
# Hashes of text cannot be chosen: Python randomises them.
MAX_NUMBER_KEYS = 3_000  # an optimizer has one per tensor
PROTOCOLS = range(2, 6)

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
# Inherited instructions. Everything not listed here or below is refused: objects (INST, OBJ,
# NEWOBJ_EX, EXT*), out-of-band buffers, sets, and the text instructions of protocols 0 and 1.
# fmt: off
_INHERITED = [
    "STOP", "MARK", "POP", "POP_MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1",
    "BININT2", "LONG1", "BINFLOAT", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "BINPUT", "BINGET", "LONG_BINGET", "MEMOIZE",
    "GLOBAL", "STACK_GLOBAL", "BINPERSID",
]
# fmt: on
_TEXT, _LATIN1, _BYTES = (True, True), (True, False), (False, False)  # is_text, utf8
_RUNS = {  # instructions followed by a length and as many bytes
    "SHORT_BINUNICODE": ("<B", _TEXT),
    "BINUNICODE": ("<I", _TEXT),
    "BINUNICODE8": ("<Q", _TEXT),
    "SHORT_BINSTRING": ("<B", _LATIN1),  # Python 2's `str`
    "BINSTRING": ("<i", _LATIN1),
    "SHORT_BINBYTES": ("<B", _BYTES),
    "BINBYTES": ("<I", _BYTES),
    "BINBYTES8": ("<Q", _BYTES),
    "BYTEARRAY8": ("<Q", _BYTES),
}
_DAMAGE_ERRORS = (IndexError, AttributeError, pickle.UnpicklingError, UnicodeDecodeError)


@contextmanager
def open_weights(
    path: str | os.PathLike[str], kind: str, other_kinds: Mapping[bytes, str] | None = None
) -> Iterator[tuple[BinaryIO, int]]:
    """Yields the open file and its size; `Refused` and read errors become UserErrors.

    Args:
        kind: the expected kind of file, for messages.
        other_kinds: beginnings of files of other kinds, and why these are refused.

    Raises:
        UserError: the file is missing, not a regular file, unreadable, refused, or too large.
    """
    check_regular(path, f"the {kind}")
    name = printable(path)
    try:
        with open(path, "rb") as file:
            _refuse_other_kinds(file.read(64), other_kinds or {})
            file.seek(0)
            yield file, os.fstat(file.fileno()).st_size
    except Refused as refusal:
        raise UserError(f"{name}: not a usable {kind}: {refusal}") from None
    except OSError as error:
        raise UserError(f"{name}: cannot read the file: {reason(error)}") from None
    except MemoryError:
        raise UserError(f"{name}: its tensors do not fit in memory") from None


def _refuse_other_kinds(head: bytes, other_kinds: Mapping[bytes, str]) -> None:
    text = head.lstrip().lower()
    if not head:
        raise Refused("it is empty; download it again")
    if head.startswith(b"\x1f\x8b"):
        raise Refused("it is compressed with gzip; unpack it first")
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Refused("it is a web page, not weights; download the file itself")
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        raise Refused("it is a text file, not weights; download the file itself")
    for beginning, why in other_kinds.items():
        if head.startswith(beginning):
            raise Refused(why)


class _Meter:
    """Wraps a file for the unpickler, to limit the number of reads and refuse any past the end."""

    def __init__(self, file: BinaryIO, end: int):
        self.file = file
        self.end = end
        self._reads_left = MAX_READS

    def check(self, length: int) -> None:
        if length > self.end - self.file.tell():
            raise Refused("it is truncated; download it again")

    def read(self, length: int) -> bytes:
        self._reads_left -= 1
        if self._reads_left < 0:
            raise Refused(f"it has more than {MAX_READS:,} pickle instructions")
        self.check(length)
        data = self.file.read(length)
        if len(data) != length:
            raise Refused("it became shorter while being read")
        return data

    def readline(self) -> bytes:
        line = self.file.readline(256)
        if not line.endswith(b"\n"):
            raise Refused("the name of a global does not end")
        return line


class _Instructions(dict):
    def __missing__(self, code: int) -> Any:
        if code in _NAMES:
            raise Refused(
                f"it uses the pickle instruction {_NAMES[code]}, which no weight file needs"
            )
        raise Refused(f"it contains the byte {code}, which is not a pickle instruction")


class ClosedUnpickler(pickle._Unpickler):
    """Interprets one pickle of protocol 2 to 5.

    Args:
        file: a seekable file, positioned at the first byte of the pickle; `load` leaves it after
            the last byte.
        end: position of the end of the file.
        globals_: stand-ins for each (module, name) that the file may use: a `Function`, which may
            be called with arguments from the file, or any other value, which may not.
    """

    dispatch = _Instructions()
    stack: list[Any]
    metastack: list[list[Any]]
    memo: dict[int, Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: BinaryIO, end: int, globals_: Mapping[tuple[str, str], Any]):
        self._meter = _Meter(file, end)
        super().__init__(self._meter)
        self._globals = globals_
        self._inline_left = MAX_INLINE_TOTAL
        self._number_keys_left = MAX_NUMBER_KEYS

    def load(self) -> Any:
        """Returns the value of the pickle, built from the stand-ins of `pickle_values`.

        Raises:
            Refused: the pickle is damaged or uses something that no weight file needs.
        """
        if self._meter.read(1) != pickle.PROTO:
            raise Refused("it is not a pickle of protocol 2 to 5")
        version = self._meter.read(1)[0]
        if version not in PROTOCOLS:
            raise Refused(f"it is a pickle of protocol {version}; only 2 to 5 are supported")
        try:
            value = super().load()
        except _DAMAGE_ERRORS:
            raise Refused("it is damaged; download it again") from None
        if self.stack or self.metastack:
            raise Refused("it ends in the middle of a container")
        return value

    def load_whole(self) -> Any:
        """Like `load`, but refuses files with data after the pickle."""
        value = self.load()
        if left := self._meter.end - self._meter.file.tell():
            raise Refused(f"it has {left:,} extra bytes at the end")
        return value

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._globals:
            is_torch = module.partition(".")[0] == "torch"
            why = "only plain tensors are supported" if is_torch else "do not trust it"
            asked = quoted(f"{module}.{name}")
            raise Refused(f"it asks for {asked}, which no weight file needs: {why}")
        return self._globals[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("it refers to external data, which no weight file needs")

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, Opaque):
            self.append(function)
        elif isinstance(function, Function) and type(arguments) is tuple:
            self.append(function.apply(arguments))
        else:
            raise Refused("it calls something that is not a function")

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, (Array, DType)):
            target.set_state(state)
        # Attributes of a dictionary (PyTorch's `_metadata`) are dropped.
        elif not isinstance(target, Opaque) and not (type(target) is type(state) is dict):
            raise Refused("it sets the state of something that is not a NumPy array")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_item(key, value)

    def load_setitems(self) -> None:
        items = self.pop_mark()
        if len(items) % 2:
            raise Refused("it has a dictionary key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._set_item(key, value)

    def _set_item(self, key: Any, value: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, Opaque):
            return
        if type(target) is not dict:
            raise Refused("it sets an item of something that is not a dictionary")
        if type(key) is int:
            self._number_keys_left -= 1
            if self._number_keys_left < 0:
                raise Refused(f"it has more than {MAX_NUMBER_KEYS:,} numbers as dictionary keys")
        elif type(key) is not str:
            raise Refused("it has a dictionary key that is neither a short text nor a number")
        if key in target:
            raise Refused(f"it contains the name {quoted(key)} twice")
        target[key] = value

    def load_long_binput(self) -> None:
        (index,) = struct.unpack("<I", self._meter.read(4))
        if index > MAX_READS:  # memo indices are dictionary keys, too
            raise Refused("it has a memo index larger than its number of instructions")
        self.memo[index] = self.stack[-1]

    def load_frame(self) -> None:
        """Checks only the length, because a frame is just a hint for reading ahead."""
        self._meter.check(struct.unpack("<Q", self._meter.read(8))[0])

    def load_run(self, layout: str, is_text: bool, utf8: bool) -> None:
        (length,) = struct.unpack(layout, self._meter.read(struct.calcsize(layout)))
        if length < 0:
            raise Refused("it contains text of negative length")
        self._meter.check(length)
        if length > MAX_INLINE_BYTES:
            file, offset = self._meter.file, self._meter.file.tell()
            file.seek(length, io.SEEK_CUR)
            self.append(Blob(lambda: file, offset, length, is_text, utf8))
            return
        self._inline_left -= length
        if self._inline_left < 0:
            raise Refused(f"its names take more than {MAX_INLINE_TOTAL >> 20} MiB")
        data = self._meter.read(length)
        self.append(data.decode("utf-8" if utf8 else "latin-1") if is_text else data)


def _instructions() -> dict[int, Any]:
    codes = {name: code for code, name in _NAMES.items()}
    steps: dict[str, Any] = {name: pickle._Unpickler.dispatch[codes[name]] for name in _INHERITED}
    for name, (layout, kind) in _RUNS.items():
        steps[name] = lambda unpickler, run=(layout, *kind): unpickler.load_run(*run)
    steps |= {
        "FRAME": ClosedUnpickler.load_frame,
        "LONG_BINPUT": ClosedUnpickler.load_long_binput,
        "SETITEM": ClosedUnpickler.load_setitem,
        "SETITEMS": ClosedUnpickler.load_setitems,
        "REDUCE": ClosedUnpickler.load_reduce,
        "NEWOBJ": ClosedUnpickler.load_reduce,
        "BUILD": ClosedUnpickler.load_build,
    }
    return {codes[name]: step for name, step in steps.items()}


ClosedUnpickler.dispatch.update(_instructions())
