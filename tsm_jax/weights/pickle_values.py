"""The values that the pickle of a weight file may build: inert stand-ins with strict checks.

The bytes of tensors stay in the file (`Blob`) until the whole pickle has been checked. `unfold`
then converts them to NumPy arrays, within limits on memory and time.
"""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np

MAX_DIMENSIONS = 32
MAX_DEPTH = 16  # nested containers; `paddle.save` of an optimizer state nests three
MAX_VALUES = 150_000
# A tensor counts twice: its bytes once, plus its values under each of its names.
MAX_GROWTH = 3
_SLACK = 2**20

# Plain numbers only: no objects, text, dates or records.
NUMBER_CODES = frozenset(
    ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
)


class Refused(Exception):
    """Why a file is refused; the code that opened the file adds its name."""


@dataclass(frozen=True, slots=True)
class Opaque:
    """A stand-in for a class, or an instance of one, that reading weights does not need."""

    name: str


class Function:
    """A function of ours that a file may call; it returns NotImplemented to refuse arguments."""

    __slots__ = ("_call", "_least", "_most", "_name")

    def __init__(self, function: Callable[..., Any]):
        defaults = [p.default for p in inspect.signature(function).parameters.values()]
        self._call, self._name, self._most = function, function.__name__, len(defaults)
        self._least = defaults.count(inspect.Parameter.empty)

    def apply(self, arguments: tuple[Any, ...]) -> Any:
        # Checked first: the time to pass a long tuple repeatedly is proportional to its length.
        is_usual = self._least <= len(arguments) <= self._most
        result = self._call(*arguments) if is_usual else NotImplemented
        if result is NotImplemented:
            raise Refused(f"it calls {self._name} in a way that no weight file needs")
        return result


@dataclass(eq=False, slots=True)
class Blob:
    """A long run of bytes that has not been read from its file yet.

    `utf8` marks text, and bytes as written by protocol 2: characters 0 to 255 encoded as UTF-8.
    """

    open: Callable[[], IO[bytes]]
    offset: int
    length: int
    is_text: bool = False
    utf8: bool = False

    def numbers(self, nbytes: int) -> np.ndarray:
        """Reads the bytes into new memory; there must be exactly `nbytes`."""
        if self.utf8:
            out = np.frombuffer(bytearray(self.content()), np.uint8)  # pyright: ignore
            read = len(out)
        else:
            out = np.empty(nbytes, np.uint8)
            read = self._at_start().readinto(out)  # pyright: ignore
        if read != nbytes:
            raise Refused("an array has the wrong number of bytes")
        return out

    def content(self) -> str | bytes:
        data = self._at_start().read(self.length)
        if len(data) != self.length:
            raise Refused("it became shorter while it was read")
        if not self.is_text and not self.utf8:
            return data
        # One character beyond latin-1 doubles or quadruples the memory of the whole text.
        if not self.is_text and np.frombuffer(data, np.uint8).max() > 0xC3:
            raise Refused("it contains bytes written as text that is not latin-1")
        try:
            text = data.decode("utf-8" if self.utf8 else "latin-1")
        except UnicodeDecodeError:
            raise Refused("it contains text that cannot be decoded") from None
        del data
        return text if self.is_text else text.encode("latin-1")

    def _at_start(self) -> IO[bytes]:
        file = self.open()
        file.seek(self.offset)
        return file


@dataclass(eq=False, slots=True)
class DType:
    """A dtype; its byte order arrives in a BUILD after its creation."""

    code: str
    found: np.dtype | None = None

    def set_state(self, state: Any) -> None:
        match state:
            case (int(), ("<" | ">" | "|" | "=") as order, None, None, None, *rest) if (
                len(rest) <= 4 and self.found is None
            ):
                # `=` is the writer's byte order: little-endian on every machine that runs Paddle.
                self.found = np.dtype(self.code).newbyteorder("<" if order == "=" else order)
            case _:
                raise Refused("it has a kind of dtype that no weight file needs")


@dataclass(eq=False, slots=True)
class Array:
    """The dtype, shape and location of a tensor's values.

    `offset` and `strides` count elements. bfloat16, which NumPy lacks, is stored as uint16.
    """

    source: Blob | None = None  # None until a BUILD fills it
    dtype: np.dtype = np.dtype(np.uint8)  # noqa: RUF009  # immutable
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    offset: int = 0
    is_bfloat16: bool = False

    @property
    def nbytes(self) -> int:
        """Size of the resulting array in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize * (2 if self.is_bfloat16 else 1)

    def set_state(self, state: Any) -> None:
        match state:
            case (int(), shape, dtype, int() as is_fortran, data) if self.source is None:
                self.fill(shape, dtype, "F" if is_fortran else "C", data)
            case _:
                raise Refused("it fills an array in a way that no weight file needs")

    def fill(self, shape: Any, dtype: Any, order: str, data: Any) -> None:
        """Sets the array from a file's description, if the number of bytes matches it exactly."""
        if not isinstance(dtype, DType):
            raise Refused("it has an array without a dtype")
        if dtype.found is None:
            raise Refused("it has a dtype without a byte order")
        self.dtype = dtype.found
        self.shape = checked_shape(shape)
        lengths = self.shape if order == "F" else self.shape[::-1]
        strides = tuple(math.prod(lengths[:axis]) for axis in range(len(lengths)))
        self.strides = strides if order == "F" else strides[::-1]
        self.source = _array_data(data)
        held, needed = self.source.length, self.nbytes
        # As UTF-8 text, each byte takes one or two; the exact number is known after decoding.
        if not (needed <= held <= 2 * needed if self.source.utf8 else needed == held):
            raise Refused(f"an array of shape {shape} has the wrong number of bytes")

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the array in native byte order, given all bytes of its source."""
        size = self.dtype.itemsize
        strides = tuple(stride * size for stride in self.strides)
        if 0 in self.shape:  # the strides and the offset may be anything
            values = np.empty(self.shape, self.dtype)
        else:
            values = np.ndarray(self.shape, self.dtype, numbers, self.offset * size, strides)
        if values.dtype.kind == "b" and values.view(np.uint8).max(initial=0) > 1:
            raise Refused("it contains a boolean that is neither true nor false")
        if self.is_bfloat16:  # the upper half of a float32
            bits = values.astype(np.uint32)
            bits <<= 16
            return bits.view(np.float32)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        return values if values.flags.forc else values.copy()


def checked_shape(shape: Any) -> tuple[int, ...]:
    is_tuple = isinstance(shape, tuple) and len(shape) <= MAX_DIMENSIONS
    if not is_tuple or any(type(length) is not int or length < 0 for length in shape):
        raise Refused("it has an array with a malformed shape")
    # Also checked for empty arrays, because NumPy multiplies their other dimensions.
    if math.prod(max(length, 1) for length in shape) >= 2**44:
        raise Refused(f"it declares an array of shape {shape}, larger than any file")
    return shape


def _array_data(data: Any) -> Blob:
    if isinstance(data, str):  # Python 2's `str`: bytes decoded as latin-1
        data = _latin1(data)
    if isinstance(data, bytes):
        return Blob(lambda: io.BytesIO(data), 0, len(data))
    if isinstance(data, Blob) and not (data.is_text and data.utf8):
        return data
    raise Refused("it has an array whose values are not bytes")


def _latin1(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise Refused("it contains bytes written as text beyond latin-1") from None


# The functions that the pickle of a NumPy array calls, with unchecked arguments from the file.


@Function
def ndarray() -> Any:
    return NotImplemented  # only ever passed to `_reconstruct`


@Function
def _reconstruct(kind: Any, shape: Any, code: Any) -> Any:
    match shape, code:
        case (0,), b"b" | "b" if kind is ndarray:
            return Array()
    return NotImplemented


@Function
def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> Any:
    if type(order) is not str or order not in ("C", "F", "K"):
        raise Refused("it has an array in an unknown memory order")
    array = Array()
    array.fill(shape, dtype, "F" if order == "F" else "C", data)
    if order == "K":
        if not _is_axis_order(axis_order, len(array.shape)):
            raise Refused("it has an array with a malformed axis order")
        array.shape = tuple(array.shape[axis] for axis in axis_order)
        array.strides = tuple(array.strides[axis] for axis in axis_order)
    return array


def _is_axis_order(axes: Any, dimensions: int) -> bool:
    is_tuple = type(axes) is tuple and len(axes) == dimensions
    return is_tuple and all(type(a) is int for a in axes) and sorted(axes) == [*range(dimensions)]


@Function
def dtype(code: Any, align: Any, copy: Any) -> Any:
    if type(code) is not str:
        return NotImplemented
    if code.startswith("O"):
        raise Refused("it contains an array of Python objects")
    if code not in NUMBER_CODES:
        raise Refused(f"it contains an array of dtype {quoted(code)}, which is not a plain number")
    return DType(code)


@Function
def scalar(dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, DType) or not isinstance(data, (bytes, str)):
        return NotImplemented
    array = Array()
    array.fill((), dtype, "C", data)
    assert array.source is not None
    return array.of(array.source.numbers(array.nbytes))[()]


@Function
def encode(text: Any, encoding: Any) -> Any:
    """Decodes the bytes of protocol 2, which are written as text; empty ones are `bytes()`."""
    if encoding not in ("latin1", "latin-1"):
        return NotImplemented
    if isinstance(text, Blob) and text.is_text:
        return replace(text, is_text=False)
    return _latin1(text) if isinstance(text, str) else NotImplemented


@Function
def empty_bytes() -> Any:
    return b""


@Function
def ordered_dict(pairs: Any = None) -> Any:
    """Builds a dictionary; Python 2 passes the items as a list of pairs."""
    if pairs is None:
        return {}
    if type(pairs) is not list:
        return NotImplemented
    items, pairs[:] = pairs[:], [None]  # consumed, so that passing them again is cheap
    found: dict[str, Any] = {}
    for item in items:
        match item:
            case [str() as key, value] if key not in found:
                found[key] = value
            case _:
                return NotImplemented
    return found


@Function
def as_tuple(values: Any) -> Any:
    """Returns a tuple: a Paddle tensor as (name, array), or a PyTorch size."""
    return values if type(values) is tuple else NotImplemented


# NumPy moved `core` to `_core` in 2.0.
GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): scalar,
    ("numpy._core.multiarray", "scalar"): scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("numpy", "ndarray"): ndarray,
    ("numpy", "dtype"): dtype,
    ("_codecs", "encode"): encode,
    ("collections", "OrderedDict"): ordered_dict,
    ("builtins", "tuple"): as_tuple,
    ("__builtin__", "tuple"): as_tuple,
    ("builtins", "bytes"): empty_bytes,
    ("__builtin__", "bytes"): empty_bytes,
}


def quoted(text: object) -> str:
    """Returns a name from a file on one line, cut to 80 characters."""
    name = str(text)
    return ascii(name if len(name) <= 80 else name[:77] + "...")


_LEAVES = (str, int, float, bool, type(None), np.generic, bytes, Opaque)


def unfold(tree: Any, file_size: int) -> Any:
    """Replaces the stand-ins in a tree by arrays, aligned and in native byte order.

    The result takes at most `MAX_GROWTH` times the size of the file plus 1 MiB.

    Raises:
        Refused: the tree would take more because it repeats values, is too deep, contains itself,
            or has a value that does not belong in a weight file.
    """
    return _Unfolding(MAX_GROWTH * file_size + _SLACK).unfold(tree, 0)


class _Unfolding:
    def __init__(self, max_bytes: int):
        self._bytes_left = max_bytes
        self._values_left = MAX_VALUES
        # Values that occur twice are read once.
        self._numbers: dict[Blob, np.ndarray] = {}
        self._arrays: dict[Array, np.ndarray] = {}

    def unfold(self, node: Any, depth: int) -> Any:
        self._values_left -= 1
        if self._values_left < 0:
            raise Refused(f"it unfolds to more than {MAX_VALUES:,} values")
        if isinstance(node, _LEAVES):
            if type(node) is int and node.bit_length() > 64:
                raise Refused("it contains an integer of more than 64 bits")
            return node
        if isinstance(node, Array):
            return self._array(node)
        if isinstance(node, Blob):
            self._spend(5 * node.length)  # one character beyond 16 bits makes all take 4 bytes
            return node.content()
        if depth == MAX_DEPTH:
            raise Refused(f"it nests more than {MAX_DEPTH} containers, or contains itself")
        if type(node) is dict:
            return {key: self.unfold(value, depth + 1) for key, value in node.items()}
        if type(node) in (list, tuple):
            return type(node)(self.unfold(value, depth + 1) for value in node)
        raise Refused("it contains something that is not a tensor, a number, text or a container")

    def _spend(self, nbytes: int) -> None:
        self._bytes_left -= nbytes
        if self._bytes_left < 0:
            raise Refused("it unfolds to much more data than the file contains")

    def _array(self, array: Array) -> np.ndarray:
        if array.source is None:
            raise Refused("it has an array without values")
        self._spend(array.nbytes)
        if array not in self._arrays:
            if array.source not in self._numbers:
                length = array.nbytes if array.source.utf8 else array.source.length
                self._spend(length)
                self._numbers[array.source] = array.source.numbers(length)
            self._arrays[array] = array.of(self._numbers[array.source])
        return self._arrays[array]
