"""Writes a `.pdparams` that PaddlePaddle 2 and 3 load, one instruction after the other.

Python's own pickler would name NumPy's functions as the installed NumPy does
(`numpy._core.multiarray` from 2.0 on), which the NumPy that most Paddle installations have
cannot find; `numpy.core.multiarray` is understood by all of them.
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Iterator, Mapping

import numpy as np

from tsm_jax.files import replacing
from tsm_jax.weights.paddle_pickle import NAME_TABLE
from tsm_jax.weights.pickle_writer import integer, integers, text

_DTYPES = frozenset(("f2", "f4", "f8", "u1", "u2", "i1", "i2", "i4", "i8", "b1"))


def write_paddle(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    parameter_names: Mapping[str, str] | None = None,
) -> None:
    """Writes `tensors` as `paddle.save(layer.state_dict(), path)` does: a pickle of protocol 4.

    The file appears under its name only when it is complete; an existing one is replaced.

    Args:
        path: the file; its folder is made if it is missing.
        tensors: by structured name. Numbers of any width; bfloat16 as the uint16 of Paddle.
        parameter_names: the `StructuredToParameterName@@` entry, which `paddle.load` needs to
            return tensors instead of arrays. Names that it lacks stand for themselves.

    Raises:
        UserError: the file cannot be written.
        ValueError: a tensor of a dtype that Paddle does not have.
    """
    names = {key: (parameter_names or {}).get(key, key) for key in tensors}
    with replacing(path) as partial, open(partial, "wb") as file:
        for piece in _pickle(tensors, names):
            file.write(piece)


def _pickle(
    tensors: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    yield pickle.PROTO + b"\x04" + pickle.EMPTY_DICT + pickle.MARK
    for key, tensor in tensors.items():
        yield text(key)
        yield from _array(key, tensor)
    yield text(NAME_TABLE) + pickle.EMPTY_DICT + pickle.MARK
    for key, name in names.items():
        yield text(key) + text(name)
    yield pickle.SETITEMS + pickle.SETITEMS + pickle.STOP


def _array(key: str, tensor: np.ndarray) -> Iterator[bytes | memoryview]:
    """`_reconstruct(ndarray, (0,), b"b")`, then BUILD with (1, shape, dtype, False, bytes)."""
    code = tensor.dtype.str[1:]
    if code not in _DTYPES:
        raise ValueError(f"{key}: Paddle files have no dtype {tensor.dtype}")
    values = np.asarray(tensor, tensor.dtype.newbyteorder("<"), order="C")
    yield _global("numpy.core.multiarray", "_reconstruct") + _global("numpy", "ndarray")
    yield integer(0) + pickle.TUPLE1 + _bytes_header(1) + b"b" + pickle.TUPLE3 + pickle.REDUCE
    yield pickle.MARK + integer(1) + integers(values.shape) + _dtype(code) + pickle.NEWFALSE
    yield _bytes_header(values.nbytes)
    yield values.reshape(-1).view(np.uint8).data
    yield pickle.TUPLE + pickle.BUILD


def _dtype(code: str) -> bytes:
    """`dtype(code, False, True)`, then BUILD with its byte order and the absent extras."""
    order = "|" if code[1:] == "1" else "<"
    made = _global("numpy", "dtype") + text(code) + pickle.NEWFALSE + pickle.NEWTRUE
    made += pickle.TUPLE3 + pickle.REDUCE
    extras = pickle.NONE * 3 + integer(-1) * 2 + integer(0)
    return made + pickle.MARK + integer(3) + text(order) + extras + pickle.TUPLE + pickle.BUILD


def _global(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


def _bytes_header(length: int) -> bytes:
    return pickle.BINBYTES8 + struct.pack("<Q", length)
