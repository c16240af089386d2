"""From a checked pickle to NumPy: bounds on the whole, then one read per tensor."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from io import BufferedReader
from typing import Any

import numpy as np

from tsm_jax.weights.pickle_values import Array, Blob, Refused, to_native

MAX_DEPTH = 16  # containers within containers; `paddle.save` of an optimizer state takes three
MAX_VALUES = 150_000
MAX_SHARING = 2  # the content may be this many times the file, where one value is met twice
_CHUNK = 2**20

_LEAVES = (str, int, float, bool, type(None), np.generic, bytes)


def check(tree: Any, file_size: int) -> None:
    """Refuses what is too deep, contains itself or multiplies a value by naming it often.

    Raises:
        Refused: also for an array without values or a bare marker where a value should be.
    """
    _, values, content = _measure(tree, 0, {})
    if values > MAX_VALUES:
        raise Refused(f"it unfolds to more than {MAX_VALUES:,} values")
    if content > MAX_SHARING * file_size:
        raise Refused("it unfolds to much more data than the file holds")


def _measure(node: Any, depth: int, known: dict[int, tuple[int, int, int]]) -> tuple[int, int, int]:
    """Height, number of values and bytes of tensors below `node`, each container visited once."""
    if isinstance(node, Array):
        return 0, 1, node.nbytes
    if isinstance(node, Blob):
        return 0, 1, node.length
    if isinstance(node, _LEAVES):
        return 0, 1, 0
    if type(node) not in (dict, list, tuple):
        raise Refused("it holds something that is neither a tensor, a number, text nor a container")
    if id(node) not in known:
        if depth >= MAX_DEPTH:
            raise Refused(f"it nests deeper than {MAX_DEPTH} containers, or contains itself")
        children = [_measure(child, depth + 1, known) for child in _children(node)]
        height = 1 + max((child[0] for child in children), default=0)
        known[id(node)] = (
            height,
            1 + sum(child[1] for child in children),
            sum(child[2] for child in children),
        )
    if depth + known[id(node)][0] > MAX_DEPTH:
        raise Refused(f"it nests deeper than {MAX_DEPTH} containers")
    return known[id(node)]


def _children(node: dict | list | tuple) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


class Loader:
    """Turns the stand-ins of a tree that `check` has passed into NumPy arrays, text and bytes."""

    def __init__(self, file: BufferedReader):
        self._file = file
        self._arrays: dict[int, np.ndarray] = {}  # a tensor met twice is read once

    def load(self, node: Any) -> Any:
        """The tree with arrays that own their memory, aligned, in this machine's byte order."""
        if isinstance(node, dict):
            return {key: self.load(value) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(self.load(value) for value in node)
        if isinstance(node, Array):
            if id(node) not in self._arrays:
                self._arrays[id(node)] = self._array(node)
            return self._arrays[id(node)]
        if isinstance(node, Blob):
            return self._text_or_bytes(node)
        return node

    def _array(self, array: Array) -> np.ndarray:
        if isinstance(array.data, bytes):
            raw = np.frombuffer(bytearray(array.data), np.uint8)
        else:
            raw = np.empty(array.nbytes, np.uint8)
            self._fill(raw, array.data)
        values = to_native(raw.view(array.dtype)).reshape(array.shape, order=array.order)
        return values if array.axis_order is None else values.transpose(array.axis_order)

    def _fill(self, raw: np.ndarray, blob: Blob) -> None:
        self._file.seek(blob.offset)
        if blob.utf8:
            self._fill_decoded(raw, blob.length)
        elif self._file.readinto(raw.data) != blob.length:
            raise Refused("it became shorter while it was read")

    def _fill_decoded(self, raw: np.ndarray, length: int) -> None:
        """Undoes protocol 2's spelling of bytes piece by piece: a tensor may be a gigabyte."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        filled = 0
        for start in range(0, length, _CHUNK):
            size = min(_CHUNK, length - start)
            try:
                text = decoder.decode(self._file.read(size), final=start + size == length)
                piece = text.encode("latin-1")
            except UnicodeError:
                raise Refused("it holds bytes written as text that is not latin-1") from None
            if filled + len(piece) > len(raw):
                raise Refused("an array has more bytes than its shape needs")
            raw[filled : filled + len(piece)] = np.frombuffer(piece, np.uint8)
            filled += len(piece)
        if filled != len(raw):
            raise Refused("an array has fewer bytes than its shape needs")

    def _text_or_bytes(self, blob: Blob) -> str | bytes:
        self._file.seek(blob.offset)
        data = self._file.read(blob.length)
        try:
            if blob.is_text:
                return data.decode("utf-8" if blob.utf8 else "latin-1")
            return data.decode("utf-8").encode("latin-1") if blob.utf8 else data
        except UnicodeError:
            raise Refused("it holds a text that cannot be decoded") from None
