"""Writes a `.pth` as `torch.save` does, without PyTorch: the format is told in `torch_file`."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from tsm_jax.files import replacing
from tsm_jax.weights.pickle_writer import integer, integers, text

_STORAGES = {"f4": "FloatStorage", "i8": "LongStorage"}
_FOLDER = "archive/"


def write_torch(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes nested dictionaries and lists of arrays, text and numbers.

    The file appears under its name only when it is complete; an existing one is replaced.

    Raises:
        UserError: the file cannot be written.
        TypeError, KeyError: a value or a dtype other than float32 and int64.
    """
    tensors: list[np.ndarray] = []
    data = pickle.PROTO + b"\x02" + _value(content, tensors) + pickle.STOP
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        members = {"data.pkl": data, "byteorder": b"little"}
        members |= {f"data/{key}": tensor.data for key, tensor in enumerate(tensors)}
        for name, member in {**members, "version": b"3\n"}.items():
            archive.writestr(zipfile.ZipInfo(_FOLDER + name), bytes(member))


def _value(value: Any, tensors: list[np.ndarray]) -> bytes:
    match value:
        case Mapping():
            items = b"".join(text(key) + _value(item, tensors) for key, item in value.items())
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case list():
            items = b"".join(_value(item, tensors) for item in value)
            return pickle.EMPTY_LIST + pickle.MARK + items + pickle.APPENDS
        case str():
            return text(value)
        case int():
            return integer(value)
        case float():
            return pickle.BINFLOAT + struct.pack(">d", value)
        case np.ndarray():
            tensors.append(np.asarray(value, value.dtype.newbyteorder("<"), order="C"))
            return _tensor(value, len(tensors) - 1)
    raise TypeError(f"cannot write a {type(value).__name__}")


def _tensor(value: np.ndarray, key: int) -> bytes:
    """`_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())`."""
    storage = text("storage") + _global("torch", _STORAGES[value.dtype.str[1:]])
    storage += text(str(key)) + text("cpu") + integer(value.size)
    storage = pickle.MARK + storage + pickle.TUPLE + pickle.BINPERSID
    strides = tuple(int(np.prod(value.shape[axis + 1 :])) for axis in range(value.ndim))
    hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = storage + integer(0) + integers(value.shape) + integers(strides)
    arguments = pickle.MARK + arguments + pickle.NEWFALSE + hooks + pickle.TUPLE
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()
