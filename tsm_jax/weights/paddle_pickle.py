"""Reads untrusted `.pdparams` and `.pdopt` files of Paddle.

Such a file is a pickle, which is a program. `closed_pickle` interprets it with a small set of
harmless instructions, so that a file can neither run code nor take more memory or time than its
size warrants.

Reference for the format of `paddle.save`: paddle/framework/io.py and io_utils.py.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tsm_jax.weights.closed_pickle import TORCH_MAGIC, ClosedUnpickler, open_weights
from tsm_jax.weights.pickle_values import GLOBALS, Refused, unfold

# Key of a table with Paddle's own parameter names, such as `{"head.fc.weight": "fc_0.w_0"}`.
NAME_TABLE = "StructuredToParameterName@@"
_OTHER_KINDS = {
    b"PK\x03\x04": "it is a zip archive, like PyTorch's .pth files; give a .pdparams",
    TORCH_MAGIC: "it is a PyTorch file in the old format; give a .pdparams",
    bytes(4): "it looks like an exported .pdiparams or .pdmodel; give the .pdparams from training",
}


def read_paddle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the dictionary in a `.pdparams` or `.pdopt`, without `NAME_TABLE`.

    Tensors become NumPy arrays with the dtype in the file. bfloat16 tensors are uint16, because
    Paddle saves them that way (`paddle_names.from_paddle` converts them to float32). Arrays own
    their memory, and the peak memory is the size of all tensors, unless they are not contiguous.
    Containers are dict, list and tuple. Pickle protocols 2 to 5 are supported; Paddle has never
    written 0 or 1.

    Raises:
        UserError: the file is missing, damaged or of another kind, or contains anything other than
            arrays, numbers, text and plain containers.
    """
    with open_weights(path, "Paddle weight file", _OTHER_KINDS) as (file, size):
        tree = ClosedUnpickler(file, size, GLOBALS).load_whole()
        if type(tree) is not dict or not all(isinstance(key, str) for key in tree):
            raise Refused("it contains a single value, not a dictionary of tensors by name")
        tree.pop(NAME_TABLE, None)
        return _unwrapped(unfold(tree, size))


def _unwrapped(value: Any) -> Any:
    """Replaces the pairs (name, array) with which Paddle represents tensors by the arrays."""
    match value:
        case (str(), np.ndarray() as array) if isinstance(value, tuple):
            return array
        case dict():
            return {key: _unwrapped(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(map(_unwrapped, value))
    return value
