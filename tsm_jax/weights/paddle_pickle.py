"""Reads Paddle's `.pdparams` and `.pdopt` without trusting them.

Such a file is a pickle, which is a program. `closed_pickle` interprets it with a handful of
harmless instructions, so that nothing in a file can run code, and no file can make us take more
memory or time than its size warrants.

What `paddle.save` writes is described in paddle/framework/io.py and io_utils.py.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tsm_jax.weights.closed_pickle import TORCH_MAGIC, ClosedUnpickler, open_weights
from tsm_jax.weights.pickle_values import GLOBALS, Refused, unfold

# The entry with Paddle's own name of each parameter, as in `{"head.fc.weight": "fc_0.w_0"}`.
NAME_TABLE = "StructuredToParameterName@@"
_OTHER_KINDS = {
    b"PK\x03\x04": "it is a zip archive, as PyTorch's .pth files are; give a .pdparams",
    TORCH_MAGIC: "it is a PyTorch file of the old format; give a .pdparams",
    bytes(4): "it looks like an exported .pdiparams or .pdmodel; give the training's file",
}


def read_paddle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dictionary in a `.pdparams` or `.pdopt` of pickle protocol 2 to 5, without `NAME_TABLE`.

    Tensors are NumPy arrays of the dtype in the file; bfloat16 ones are uint16, because that is how
    Paddle saves them (`paddle_names.from_paddle` turns them into float32). Arrays own their memory;
    the peak is the size of the tensors, once, unless they are not contiguous. Containers are dict,
    list and tuple. Protocols 0 and 1 are refused: Paddle has never written them.

    Raises:
        UserError: for a file that is missing, damaged, something else, or asks for more than
            arrays, numbers, text and plain containers.
    """
    with open_weights(path, "Paddle weight file", _OTHER_KINDS) as (file, size):
        tree = ClosedUnpickler(file, size, GLOBALS).load_whole()
        if type(tree) is not dict or not all(isinstance(key, str) for key in tree):
            raise Refused("it holds a single value, not a dictionary of tensors by name")
        tree.pop(NAME_TABLE, None)
        return _unwrapped(unfold(tree, size))


def _unwrapped(value: Any) -> Any:
    """Replaces the pairs (name, array), Paddle's spelling of a tensor, by their arrays."""
    match value:
        case (str(), np.ndarray() as array) if isinstance(value, tuple):
            return array
        case dict():
            return {key: _unwrapped(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(map(_unwrapped, value))
    return value
