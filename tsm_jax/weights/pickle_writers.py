"""Writes `.pdparams` and `.pth` files, one pickle instruction after another.

Python's own pickler would refer to NumPy's functions by the names of the installed NumPy
(`numpy._core.multiarray` since 2.0), which the older NumPy of most Paddle installations does not
have; `numpy.core.multiarray` works everywhere. For PyTorch's objects it would need PyTorch. The
formats are described in `paddle_pickle` and `torch_file`.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tsm_jax.files import replacing
from tsm_jax.weights.paddle_pickle import NAME_TABLE

_PADDLE_DTYPES = frozenset(("f2", "f4", "f8", "u1", "u2", "i1", "i2", "i4", "i8", "b1"))
_TORCH_STORAGES = {"f4": "FloatStorage", "i8": "LongStorage"}


def write_paddle(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    parameter_names: Mapping[str, str] | None = None,
) -> None:
    """Writes `tensors` as `paddle.save(layer.state_dict(), path)` of PaddlePaddle 2 and 3 does.

    The file appears under its name only when it is complete; an existing one is replaced.

    Args:
        tensors: by structured name, with numbers of any width; bfloat16 is given as Paddle's
            uint16.
        parameter_names: the `NAME_TABLE`, which `paddle.load` needs to return tensors instead of
            arrays. Missing names default to the structured name.

    Raises:
        UserError: the file cannot be written.
        ValueError: a tensor has a dtype that Paddle lacks.
    """
    names = {key: (parameter_names or {}).get(key, key) for key in tensors}
    with replacing(path) as partial, open(partial, "wb") as file:
        for piece in _paddle_pickle(tensors, names):
            file.write(piece)


def _paddle_pickle(
    tensors: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    yield pickle.PROTO + b"\x04" + pickle.EMPTY_DICT + pickle.MARK
    for key, tensor in tensors.items():
        yield _text(key)
        yield from _array(key, tensor)
    yield _text(NAME_TABLE) + pickle.EMPTY_DICT + pickle.MARK
    for key, name in names.items():
        yield _text(key) + _text(name)
    yield pickle.SETITEMS + pickle.SETITEMS + pickle.STOP


def _array(key: str, tensor: np.ndarray) -> Iterator[bytes | memoryview]:
    """`_reconstruct(ndarray, (0,), b"b")`, then BUILD with (1, shape, dtype, False, bytes)."""
    code = tensor.dtype.str[1:]
    if code not in _PADDLE_DTYPES:
        raise ValueError(f"{key}: Paddle files do not support the dtype {tensor.dtype}")
    values = np.asarray(tensor, tensor.dtype.newbyteorder("<"), order="C")
    yield _stack_global("numpy.core.multiarray", "_reconstruct") + _stack_global("numpy", "ndarray")
    yield _integer(0) + pickle.TUPLE1 + _bytes_header(1) + b"b" + pickle.TUPLE3 + pickle.REDUCE
    yield pickle.MARK + _integer(1) + _integers(values.shape) + _dtype(code) + pickle.NEWFALSE
    yield _bytes_header(values.nbytes)
    yield values.reshape(-1).view(np.uint8).data
    yield pickle.TUPLE + pickle.BUILD


def _dtype(code: str) -> bytes:
    """`dtype(code, False, True)`, then BUILD with its byte order and the absent extras."""
    order = "|" if code[1:] == "1" else "<"
    made = _stack_global("numpy", "dtype") + _text(code) + pickle.NEWFALSE + pickle.NEWTRUE
    made += pickle.TUPLE3 + pickle.REDUCE
    extras = pickle.NONE * 3 + _integer(-1) * 2 + _integer(0)
    return made + pickle.MARK + _integer(3) + _text(order) + extras + pickle.TUPLE + pickle.BUILD


def write_torch(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes nested dictionaries and lists of arrays, text and numbers like `torch.save`.

    The file appears under its name only when it is complete; an existing one is replaced.

    Raises:
        UserError: the file cannot be written.
        TypeError: a value has an unsupported type.
        KeyError: a dtype is neither float32 nor int64.
    """
    tensors: list[np.ndarray] = []
    data = pickle.PROTO + b"\x02" + _torch_value(content, tensors) + pickle.STOP
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        members = {"data.pkl": data, "byteorder": b"little"}
        members |= {f"data/{key}": tensor.data for key, tensor in enumerate(tensors)}
        for name, member in {**members, "version": b"3\n"}.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), bytes(member))


def _torch_value(value: Any, tensors: list[np.ndarray]) -> bytes:
    match value:
        case Mapping():
            items = b"".join(_text(k) + _torch_value(item, tensors) for k, item in value.items())
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case list():
            items = b"".join(_torch_value(item, tensors) for item in value)
            return pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS
        case str():
            return _text(value)
        case int():
            return _integer(value)
        case float():
            return pickle.BINFLOAT + struct.pack(">d", value)
        case np.ndarray():
            tensors.append(np.asarray(value, value.dtype.newbyteorder("<"), order="C"))
            return _torch_tensor(value, len(tensors) - 1)
    raise TypeError(f"cannot write a value of type {type(value).__name__}")


def _torch_tensor(value: np.ndarray, key: int) -> bytes:
    """`_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`."""
    storage = _text("storage") + _global("torch", _TORCH_STORAGES[value.dtype.str[1:]])
    storage += _text(str(key)) + _text("cpu") + _integer(value.size)
    storage = pickle.MARK + storage + pickle.TUPLE + pickle.BINPERSID
    strides = tuple(int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim))
    hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = storage + _integer(0) + _integers(value.shape) + _integers(strides)
    arguments = pickle.MARK + arguments + pickle.NEWFALSE + hooks + pickle.TUPLE
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def _integers(values: tuple[int, ...]) -> bytes:
    return pickle.MARK + b"".join(map(_integer, values)) + pickle.TUPLE


def _bytes_header(length: int) -> bytes:
    return pickle.BINBYTES8 + struct.pack("<Q", length)


def _stack_global(module: str, name: str) -> bytes:
    return _text(module) + _text(name) + pickle.STACK_GLOBAL


def _global(module: str, name: str) -> bytes:
    """Encodes a global for protocol 2."""
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
