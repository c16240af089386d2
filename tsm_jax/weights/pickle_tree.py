"""From the stand-ins of a checked pickle to NumPy, within a bound on memory and time."""

from __future__ import annotations

from typing import Any

import numpy as np

from tsm_jax.weights.pickle_values import Array, Blob, Opaque, Refused

MAX_DEPTH = 16  # containers within containers; `paddle.save` of an optimizer state takes three
MAX_VALUES = 150_000
# A tensor counts twice: its bytes once, and its values under each name that it has.
MAX_GROWTH = 3
_SLACK = 2**20

_LEAVES = (str, int, float, bool, type(None), np.generic, bytes, Opaque)


def unfold(tree: Any, file_size: int) -> Any:
    """The tree with arrays, aligned and in this machine's byte order, in place of stand-ins.

    Takes at most `MAX_GROWTH` times the size of the file, and refuses what names a value often
    enough to become more.

    Raises:
        Refused: also for what is too deep, contains itself, or is not a value of weight files.
    """
    return _Unfolding(MAX_GROWTH * file_size + _SLACK).unfold(tree, 0)


class _Unfolding:
    def __init__(self, max_bytes: int):
        self._bytes_left = max_bytes
        self._values_left = MAX_VALUES
        # What is met twice is read once.
        self._numbers: dict[Blob, np.ndarray] = {}
        self._arrays: dict[Array, np.ndarray] = {}

    def unfold(self, node: Any, depth: int) -> Any:
        self._values_left -= 1
        if self._values_left < 0:
            raise Refused(f"it unfolds to more than {MAX_VALUES:,} values")
        if isinstance(node, _LEAVES):
            if type(node) is int and node.bit_length() > 64:
                raise Refused("it holds an integer of more than 64 bits")
            return node
        if isinstance(node, Array):
            return self._array(node)
        if isinstance(node, Blob):
            self._spend(5 * node.length)  # one character beyond 16 bits makes each take 4 bytes
            return node.content()
        if depth == MAX_DEPTH:
            raise Refused(f"it nests deeper than {MAX_DEPTH} containers, or contains itself")
        if type(node) is dict:
            return {key: self.unfold(value, depth + 1) for key, value in node.items()}
        if type(node) in (list, tuple):
            return type(node)(self.unfold(value, depth + 1) for value in node)
        raise Refused("it holds something that is neither a tensor, a number, text nor a container")

    def _spend(self, nbytes: int) -> None:
        self._bytes_left -= nbytes
        if self._bytes_left < 0:
            raise Refused("it unfolds to much more data than the file holds")

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
