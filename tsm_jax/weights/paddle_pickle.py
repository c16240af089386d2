"""Reads Paddle's `.pdparams` and `.pdopt` without trusting them.

Such a file is a pickle, which is a program. `closed_pickle` interprets it with a handful of
harmless instructions, so that nothing in a file can run code, and no file can make us take more
memory or time than its size warrants.

What `paddle.save` writes is described in paddle/framework/io.py and io_utils.py.
"""

from __future__ import annotations

import math
import os
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from tsm_jax.weights.closed_pickle import ClosedUnpickler
from tsm_jax.weights.pickle_values import GLOBALS, MAX_DIMENSIONS, Refused, quoted, unfold
from tsm_jax.weights.weight_file import TORCH_MAGIC, open_weights

NAME_TABLE = "StructuredToParameterName@@"
SLICE_TABLE = "UnpackBigParamInfor@@"


class PaddleFile(NamedTuple):
    """What a file written by `paddle.save` holds.

    Attributes:
        content: the saved dictionary. Tensors are NumPy arrays of the dtype in the file; bfloat16
            ones are uint16, because that is how Paddle saves them (`paddle_names.from_paddle`
            turns them into float32). Containers within it are dict, list and tuple.
        parameter_names: structured name to Paddle's own parameter name, as in
            `{"head.fc.weight": "fc_0.w_0"}`: the `StructuredToParameterName@@` entry. Empty where
            the file has none.
    """

    content: dict[str, Any]
    parameter_names: dict[str, str]


def read_paddle(path: str | os.PathLike[str]) -> PaddleFile:
    """Reads a `.pdparams` or `.pdopt` of pickle protocol 2 to 5.

    Protocols 0 and 1 are refused: Paddle has never written them. Arrays own their memory; the
    peak is the size of the tensors, once, unless they are not contiguous.

    Raises:
        UserError: for a file that is missing, damaged, something else, or asks for more than
            arrays, numbers, text and plain containers.
    """
    with open_weights(path, "Paddle weight file") as (file, size):
        _refuse_other_kinds(file)
        tree = ClosedUnpickler(file, size, GLOBALS).load_whole()
        if type(tree) is not dict or not all(isinstance(key, str) for key in tree):
            raise Refused("it holds a single value, not a dictionary of tensors by name")
        return _paddle_file(unfold(tree, size))


def _refuse_other_kinds(file: BinaryIO) -> None:
    head = file.read(64)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        raise Refused("it is a zip archive, as PyTorch's .pth files are; give a .pdparams")
    if head.startswith(TORCH_MAGIC):
        raise Refused("it is a PyTorch file of the old format; give a .pdparams")
    if head.startswith(b"\x00\x00\x00\x00"):
        raise Refused("it looks like an exported .pdiparams or .pdmodel; give the training's file")


def _paddle_file(tree: dict[str, Any]) -> PaddleFile:
    names = tree.pop(NAME_TABLE, {})
    is_table = isinstance(names, dict)
    if not is_table or not all(isinstance(name, str) for item in names.items() for name in item):
        raise Refused(f"its {NAME_TABLE} entry is not a table of names")
    _join_slices(tree)
    content = {key: _unwrapped(key, value, names) for key, value in tree.items()}
    return PaddleFile(content, names)


def _unwrapped(key: str, value: Any, names: dict[str, str]) -> Any:
    """Replaces the pairs (name, array), Paddle's spelling of a tensor, by their arrays."""
    if _is_named_tensor(value):
        names.setdefault(key, value[0])
        return value[1]
    if isinstance(value, dict):
        return {name: _unwrapped(f"{key}.{name}", item, names) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_unwrapped(f"{key}.{i}", item, names) for i, item in enumerate(value))
    return value


def _is_named_tensor(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], np.ndarray)
    )


def _join_slices(tree: dict[str, Any]) -> None:
    """Joins tensors that protocols 2 and 3 had to cut because of their size, in place.

    The table is `{name: {"OriginShape": shape, "slices": [name of a flat part, ...]}}`.
    """
    table = tree.pop(SLICE_TABLE, {})
    if not isinstance(table, dict):
        raise Refused(f"its {SLICE_TABLE} entry is not a table")
    for name, info in table.items():
        match name, info:
            case str(), {"OriginShape": (tuple() | list()) as shape, "slices": list() as parts}:
                tree[name] = _joined(name, [_slice(tree, part) for part in parts], shape)
            case _:
                raise Refused(f"its {SLICE_TABLE} entry of {quoted(name)} is malformed")


def _slice(tree: dict[str, Any], part: Any) -> np.ndarray:
    array = tree.pop(part, None) if isinstance(part, str) else None
    if not isinstance(array, np.ndarray) or array.ndim != 1:
        raise Refused(f"a part of a tensor listed in {SLICE_TABLE} is missing")
    return array


def _joined(name: str, parts: list[np.ndarray], shape: tuple | list) -> np.ndarray:
    lengths = [length for length in shape if type(length) is int and length >= 0]
    fits = (
        len(lengths) == len(shape) <= MAX_DIMENSIONS
        and len({part.dtype for part in parts}) == 1
        and math.prod(lengths) == sum(part.size for part in parts) > 0
    )
    if not fits:
        raise Refused(f"the parts of {quoted(name)} do not make up its shape")
    return np.concatenate(parts).reshape(lengths)
