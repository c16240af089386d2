"""What a weight file's pickle may build: inert stand-ins, checked by our own rules.

Nothing named in a file is ever imported or called. The few globals that a pickled NumPy array
needs are members of `Global`; applying one of them (`call`, `build`) only records what the file
says. The bytes of tensors stay in the file (`Blob`) until the whole pickle has been checked.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

MAX_DIMENSIONS = 32
MAX_ARGUMENTS = 5
MAX_STATE = 9


ByteOrder = Literal["<", ">", "|"]


class Refused(Exception):
    """Why a file is not read; whoever opened it puts its name in front."""


class Global(enum.Enum):
    """The callables and types that files written by `paddle.save` ask for."""

    RECONSTRUCT = "numpy array, empty"
    FROMBUFFER = "numpy array over a buffer"
    SCALAR = "numpy number"
    NDARRAY = "numpy.ndarray"
    DTYPE = "numpy.dtype"
    ENCODE = "text to bytes"
    ORDERED_DICT = "collections.OrderedDict"
    TUPLE = "tuple"
    BYTES = "bytes"


# NumPy moved `core` to `_core` in 2.0. `tuple` carries a Paddle tensor as (name, array);
# protocol 2 has no bytes: full ones come as encoded text, empty ones as a call of `bytes`.
GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): Global.RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): Global.RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): Global.SCALAR,
    ("numpy._core.multiarray", "scalar"): Global.SCALAR,
    ("numpy.core.numeric", "_frombuffer"): Global.FROMBUFFER,
    ("numpy._core.numeric", "_frombuffer"): Global.FROMBUFFER,
    ("numpy", "ndarray"): Global.NDARRAY,
    ("numpy", "dtype"): Global.DTYPE,
    ("_codecs", "encode"): Global.ENCODE,
    ("collections", "OrderedDict"): Global.ORDERED_DICT,
    ("builtins", "tuple"): Global.TUPLE,
    ("__builtin__", "tuple"): Global.TUPLE,
    ("builtins", "bytes"): Global.BYTES,
    ("__builtin__", "bytes"): Global.BYTES,
}

# Plain numbers only: no objects, text, dates or records.
NUMBER_CODES = frozenset(
    ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
)


@dataclass(frozen=True, slots=True)
class Blob:
    """A long run of bytes that is still in the file.

    `utf8` marks protocol 2's spelling of bytes: characters 0 to 255, encoded as UTF-8.
    """

    offset: int
    length: int
    is_text: bool
    utf8: bool


class DType:
    """A dtype; its byte order arrives in a BUILD after it was made."""

    __slots__ = ("byte_order", "code")

    def __init__(self, code: str):
        self.code = code
        self.byte_order: ByteOrder | None = None

    def to_numpy(self) -> np.dtype:
        if self.byte_order is None:
            raise Refused("it has a dtype without a byte order")
        return np.dtype(self.code).newbyteorder(self.byte_order)


class Array:
    """An array's shape and dtype, and where its values are; filled by a BUILD."""

    __slots__ = ("_dtype", "axis_order", "data", "order", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self._dtype: np.dtype | None = None  # None until it is filled
        self.order: Literal["C", "F"] = "C"
        self.axis_order: tuple[int, ...] | None = None  # a transposition after reading
        self.data: bytes | Blob = b""

    def fill(self, shape: Any, dtype: Any, order: Literal["C", "F"], data: Any) -> None:
        """Takes what the file says of the array, if the bytes agree with it exactly."""
        if self._dtype is not None:
            raise Refused("it fills an array twice")
        if not isinstance(dtype, DType):
            raise Refused("it has an array without a dtype")
        self._dtype = dtype.to_numpy()
        self.shape = _checked_shape(shape)
        self.order = order
        self.data = _array_data(data)
        self._check_length()

    @property
    def dtype(self) -> np.dtype:
        if self._dtype is None:
            raise Refused("it has an array without values")
        return self._dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def _check_length(self) -> None:
        needed = self.nbytes
        if isinstance(self.data, Blob) and self.data.utf8:
            # Each byte takes one or two; the exact number is known once it is decoded.
            agrees = needed <= self.data.length <= 2 * needed
        else:
            held = self.data.length if isinstance(self.data, Blob) else len(self.data)
            agrees = needed == held
        if not agrees:
            raise Refused(f"an array's shape {self.shape} disagrees with the number of its bytes")


def _checked_shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
        raise Refused("it has an array with a malformed shape")
    if any(type(length) is not int or length < 0 for length in shape):
        raise Refused("it has an array with a malformed shape")
    # Of an empty array too: NumPy multiplies its other dimensions.
    if math.prod(max(length, 1) for length in shape) >= 2**44:
        raise Refused(f"it declares an array of shape {shape}, larger than any file")
    return shape


def _array_data(data: Any) -> bytes | Blob:
    if isinstance(data, str):  # Python 2's `str`: bytes that were read as latin-1
        return _latin1(data)
    if isinstance(data, Blob) and not (data.is_text and data.utf8):
        return data
    if isinstance(data, bytes):
        return data
    raise Refused("it has an array whose values are not bytes")


def _latin1(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise Refused("it holds bytes written as text beyond latin-1") from None


def call(function: Any, arguments: Any) -> Any:
    """What REDUCE makes: `function` is a `Global`, `arguments` the file's tuple.

    Raises:
        Refused: for anything but the calls that `paddle.save` writes.
    """
    if not isinstance(function, Global) or type(arguments) is not tuple:
        raise Refused("it calls something that is not a function")
    # A long tuple that is met again and again would cost its length each time.
    if len(arguments) > MAX_ARGUMENTS:
        raise Refused(f"it calls {function.value} with {len(arguments):,} arguments")
    match function, arguments:
        case Global.RECONSTRUCT, (Global.NDARRAY, (0,), b"b" | "b"):
            return Array()
        case Global.DTYPE, (str() as code, int(), int()):
            return _dtype(code)
        case Global.FROMBUFFER, (data, dtype, shape, order, *axis_order):
            return _array_over_buffer(data, dtype, shape, order, axis_order)
        case Global.SCALAR, (DType() as dtype, (bytes() | str()) as data):
            return _scalar(dtype, data)
    return _call_of_plain_type(function, arguments)


def _call_of_plain_type(function: Global, arguments: tuple[Any, ...]) -> Any:
    match function, arguments:
        case Global.ENCODE, (str() as text, "latin1" | "latin-1"):
            return _latin1(text)
        case Global.ENCODE, (Blob(is_text=True) as text, "latin1" | "latin-1"):
            return replace(text, is_text=False)
        case Global.ORDERED_DICT, ():
            return {}
        case Global.TUPLE, (tuple() as values,):
            return values
        case Global.BYTES, ():
            return b""
    raise Refused(f"it calls {function.value} in a way that no weight file needs")


def _dtype(code: str) -> DType:
    if code.startswith("O"):
        raise Refused("it holds an array of Python objects")
    if code not in NUMBER_CODES:
        raise Refused(f"it holds an array of dtype {quoted(code)}, which is no plain number")
    return DType(code)


def _array_over_buffer(data: Any, dtype: Any, shape: Any, order: Any, axis_order: list) -> Array:
    if type(order) is not str or order not in ("C", "F", "K"):
        raise Refused("it has an array in an unknown memory order")
    array = Array()
    array.fill(shape, dtype, "F" if order == "F" else "C", data)
    if order == "K":
        axes = axis_order[0] if axis_order else None
        array.axis_order = _checked_axes(axes, len(array.shape))
    return array


def _checked_axes(axes: Any, dimensions: int) -> tuple[int, ...]:
    if type(axes) is not tuple or len(axes) != dimensions:
        raise Refused("it has an array with a malformed axis order")
    if any(type(axis) is not int for axis in axes) or sorted(axes) != list(range(dimensions)):
        raise Refused("it has an array with a malformed axis order")
    return axes


def _scalar(dtype: DType, data: bytes | str) -> np.generic:
    raw = _latin1(data) if isinstance(data, str) else data
    numpy_dtype = dtype.to_numpy()
    if len(raw) != numpy_dtype.itemsize:
        raise Refused("it has a number with too many or too few bytes")
    return to_native(np.frombuffer(raw, numpy_dtype))[0]


def to_native(values: np.ndarray) -> np.ndarray:
    """The same values in this machine's byte order; not copied where they have it already."""
    if values.dtype.kind == "b" and values.size and values.view(np.uint8).max() > 1:
        raise Refused("it holds a truth value that is neither true nor false")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def set_item(target: Any, key: Any, value: Any) -> None:
    """`target[key] = value` for a new text key: the hash of text cannot be chosen by a file."""
    if type(target) is not dict:
        raise Refused("it sets an item of something that is not a dictionary")
    if type(key) is not str:
        raise Refused("it has a dictionary key that is not a short text")
    if key in target:
        raise Refused(f"it has the name {quoted(key)} twice")
    target[key] = value


def build(target: Any, state: Any) -> None:
    """What BUILD does: fills an array or gives a dtype its byte order, and nothing else.

    Raises:
        Refused: for any other target or a malformed state.
    """
    if type(state) is not tuple or len(state) > MAX_STATE:
        raise Refused("it sets a state of a kind that no weight file needs")
    match target, state:
        case DType(), (int(), ("<" | ">" | "|" | "=") as order, None, None, None, *_):
            if target.byte_order is not None:
                raise Refused("it sets the byte order of a dtype twice")
            # `=` is the writer's own order: that of every machine Paddle runs on.
            target.byte_order = "<" if order == "=" else order
        case Array(), (int(), shape, dtype, int() as is_fortran, data):
            target.fill(shape, dtype, "F" if is_fortran else "C", data)
        case _:
            raise Refused("it sets the state of something that is not a NumPy array")


def quoted(text: str) -> str:
    """A name from a file on one line, cut to a bearable length."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")
