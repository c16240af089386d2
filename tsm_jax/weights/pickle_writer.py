"""Instructions of a pickle, for the weight files that we write ourselves.

Python's own pickler names NumPy's functions as the installed NumPy does, and needs PyTorch for
PyTorch's.
"""

from __future__ import annotations

import pickle
import struct


def text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return pickle.BININT + struct.pack("<i", value)
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def integers(values: tuple[int, ...]) -> bytes:
    return pickle.MARK + b"".join(map(integer, values)) + pickle.TUPLE
