"""Reads PyTorch's `.pth` (`.pt`, `.pth.tar`) without PyTorch and without trusting it.

`torch.save` writes a zip archive: `NAME/data.pkl`, a pickle in which tensors refer to storages by
their keys, and `NAME/data/KEY`, the bytes of each storage. Before 1.6 it wrote five pickles (a
magic number, the version, the system, the object, the storages' keys) and then the storages.

See torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from tsm_jax.weights.pickle_tree import unfold
from tsm_jax.weights.pickle_values import Blob, Refused, quoted
from tsm_jax.weights.torch_tensors import TorchUnpickler
from tsm_jax.weights.weight_file import open_weights

OLD_FORMAT = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of the magic number
MAX_PICKLE = 32 * 2**20  # of a zip archive; it holds names and numbers
MAX_DIRECTORY = 2 * 2**20  # of a zip archive: 20,000 storages


def read_torch(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """What `torch.save` was given: as a rule a state dict, or a dictionary that has one.

    Tensors and parameters become NumPy arrays of their dtype; bfloat16 becomes float32, exactly.
    Those that share a storage share memory.
    Containers are dict, list and tuple. Objects of classes that are known to be harmless
    (`argparse.Namespace`, mmengine's `HistoryBuffer`) become an `Opaque`.

    Raises:
        UserError: the file is missing, damaged or something else, holds a tensor that is sparse or
            quantised, or asks for anything else than tensors, numbers, text and containers.
    """
    with open_weights(path, "PyTorch weight file") as (file, size):
        head = file.read(512)
        file.seek(0)
        if head.startswith(b"PK"):
            tree = _read_zip(file, size)
        elif head.startswith(OLD_FORMAT):
            tree = _read_old(file, size)
        elif head[257:262] == b"ustar":
            raise Refused("it is of PyTorch 0.1's tar format; save it again with a newer PyTorch")
        else:
            raise Refused("it is neither a zip archive nor a pickle that torch.save wrote")
        if type(tree) is not dict:
            raise Refused("it holds a single value, not a dictionary of tensors")
        return unfold(tree, size)


# The zip archive.


def _read_zip(file: BinaryIO, size: int) -> Any:
    with _zip_errors():
        limited: Any = _LimitedReads(file)
        archive = zipfile.ZipFile(limited)
        limited.limit = size  # the directory is read; storages may be larger
    members = {member.filename: member for member in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise Refused("its zip archive has two members of one name")
    pickles = [name for name in members if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(pickles) != 1:
        raise Refused("it is a zip archive without the data.pkl of torch.save")
    prefix = pickles[0].removesuffix("data.pkl")
    if prefix + "constants.pkl" in members:
        raise Refused("it is a TorchScript program; save its state_dict() instead")

    def content(name: str) -> bytes:
        return _member(archive, members[name]).content()

    def storage(key: str, length: int) -> Blob:
        member = members.get(f"{prefix}data/{key}")
        if member is None or member.file_size != length:
            raise Refused(f"its storage {quoted(key)} is missing or of another size")
        return _member(archive, member)

    order = content(prefix + "byteorder") if prefix + "byteorder" in members else b"little"
    if order not in (b"little", b"big"):
        raise Refused("it has an unknown byte order")
    data = content(pickles[0])
    unpickler = TorchUnpickler(io.BytesIO(data), len(data), storage, order == b"big")
    return unpickler.load_whole()


class _LimitedReads:
    """A file of which `zipfile` cannot read a directory of any size."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.limit = MAX_DIRECTORY

    def read(self, length: int = -1) -> bytes:
        data = self._file.read(self.limit + 1 if length < 0 else min(length, self.limit + 1))
        if len(data) > self.limit:
            raise Refused(f"its zip archive lists more than {self.limit >> 20} MiB of names")
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Member(Blob):
    """A member of a zip archive, whose checksum is compared."""

    def numbers(self, nbytes: int) -> np.ndarray:
        with _zip_errors():
            return super().numbers(nbytes)

    def content(self) -> bytes:
        if self.length > MAX_PICKLE:
            raise Refused(f"its data.pkl has more than {MAX_PICKLE >> 20} MiB")
        return self.numbers(self.length).tobytes()


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Member:
    is_plain = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if not is_plain or member.flag_bits & 1:
        raise Refused("its zip archive is encrypted, or compressed in an unusual way")
    return _Member(lambda: archive.open(member), 0, member.file_size)


@contextmanager
def _zip_errors() -> Iterator[None]:
    try:
        yield
    except _OF_ZIP as error:
        raise Refused(f"its zip archive is damaged: {quoted(error)}") from None


_OF_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, struct.error, ValueError)


# The old format.


def _read_old(file: BinaryIO, size: int) -> Any:
    file.seek(len(OLD_FORMAT))

    def storage(key: str, length: int) -> Blob:
        return Blob(lambda: file, 0, length)  # where it is, is known below

    if TorchUnpickler(file, size, storage).load() != 1001:
        raise Refused("it is of an unknown version of PyTorch's old format")
    TorchUnpickler(file, size, storage).load()  # the system; storages are little-endian on each
    unpickler = TorchUnpickler(file, size, storage)
    tree = unpickler.load()
    keys, storages = TorchUnpickler(file, size, storage).load(), unpickler.storages
    is_list = type(keys) is list and all(type(key) is str for key in keys)
    if not is_list or sorted(keys) != sorted(storages):
        raise Refused("its list of storages is not that of its tensors")
    for key in keys:
        if file.read(8) != struct.pack("<q", storages[key].count):
            raise Refused(f"its storage {quoted(key)} is missing or of another size")
        storages[key].data.offset = file.tell()
        file.seek(min(file.tell() + storages[key].data.length, size + 1))
    if file.tell() != size:
        raise Refused("it is cut off in the middle, or something follows its end")
    return tree
