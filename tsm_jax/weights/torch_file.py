"""Reads untrusted `.pth` (`.pt`, `.pth.tar`) and `.safetensors` files without PyTorch.

`torch.save` writes a zip archive with `NAME/data.pkl`, a pickle in which tensors refer to storages
by key, and `NAME/data/KEY`, the bytes of each storage. Before 1.6 it wrote five pickles (a magic
number, the version, the system, the object, the storage keys) followed by the storages.

See torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from tsm_jax.errors import UserError
from tsm_jax.terminal import printable
from tsm_jax.weights.closed_pickle import TORCH_MAGIC, ClosedUnpickler, open_weights
from tsm_jax.weights.model_directory import open_tensors
from tsm_jax.weights.pickle_values import (
    GLOBALS,
    Array,
    Blob,
    Function,
    Opaque,
    Refused,
    as_tuple,
    checked_shape,
    quoted,
    unfold,
)

_SAFETENSORS_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")

MAX_PICKLE = 32 * 2**20  # bytes of data.pkl, which contains only names and numbers
MAX_DIRECTORY = 2 * 2**20  # bytes of a zip archive's directory: 20,000 storages


def read_torch(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """Reads the dictionary given to `torch.save`, usually a state dict or one that contains it.

    Tensors and parameters become NumPy arrays of the same dtype, except that bfloat16 becomes
    float32 (exactly). Tensors that share a storage share memory. Containers are dict, list and
    tuple. Objects of known harmless classes (`argparse.Namespace`, mmengine's `HistoryBuffer`)
    become an `Opaque`.

    Raises:
        UserError: the file is missing, damaged or of another kind, contains a sparse or quantised
            tensor, or contains anything other than tensors, numbers, text and containers.
    """
    with open_weights(path, "PyTorch weight file") as (file, size):
        head = file.read(512)
        file.seek(0)
        if head.startswith(b"PK"):
            tree = _read_zip(file, size)
        elif head.startswith(TORCH_MAGIC):
            tree = _read_old(file, size)
        elif head[257:262] == b"ustar":
            raise Refused("it has PyTorch 0.1's tar format; save it again with a newer PyTorch")
        else:
            raise Refused("it is neither a zip archive nor a pickle written by torch.save")
        if type(tree) is not dict:
            raise Refused("it contains a single value, not a dictionary of tensors")
        return unfold(tree, size)


def read_safetensors(path: str) -> dict[str, np.ndarray]:
    """Reads all tensors of a safetensors file; bfloat16 becomes float32 (exactly).

    Raises:
        UserError: the file is damaged, or a tensor has a dtype that NumPy lacks.
    """
    import ml_dtypes  # noqa: F401  # registers bfloat16 with NumPy; installed with jax

    tensors = {}
    with open_tensors(path) as file:
        for name in sorted(set(file.keys())):
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _SAFETENSORS_DTYPES:
                raise UserError(
                    f"cannot read {path}: {printable(name)} has the unsupported dtype {dtype}"
                )
            value = file.get_tensor(name)
            tensors[name] = value.astype(np.float32) if dtype == "BF16" else value
    return tensors


# The zip archive.


def _read_zip(file: BinaryIO, size: int) -> Any:
    with _zip_errors():
        limited: Any = _LimitedReads(file)
        archive = zipfile.ZipFile(limited)
        limited.limit = size  # the directory has been read; storages may be larger
    members = {member.filename: member for member in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise Refused("its zip archive has two members with the same name")
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
            raise Refused(f"its storage {quoted(key)} is missing or has the wrong size")
        return _member(archive, member)

    order = content(prefix + "byteorder") if prefix + "byteorder" in members else b"little"
    if order not in (b"little", b"big"):
        raise Refused("it has an unknown byte order")
    data = content(pickles[0])
    unpickler = TorchUnpickler(io.BytesIO(data), len(data), storage, order == b"big")
    return unpickler.load_whole()


class _LimitedReads:
    """A file that limits the size of the directory that `zipfile` reads."""

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
    """A member of a zip archive; reading it verifies its checksum."""

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
        raise Refused("its zip archive is encrypted or uses an unusual compression")
    return _Member(lambda: archive.open(member), 0, member.file_size)


@contextmanager
def _zip_errors() -> Iterator[None]:
    try:
        yield
    except _ZIP_ERRORS as error:
        raise Refused(f"its zip archive is damaged: {quoted(error)}") from None


_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, struct.error, ValueError)


# The old format.


def _read_old(file: BinaryIO, size: int) -> Any:
    file.seek(len(TORCH_MAGIC))

    def storage(key: str, length: int) -> Blob:
        return Blob(lambda: file, 0, length)  # its offset is set below

    if TorchUnpickler(file, size, storage).load() != 1001:
        raise Refused("it has an unknown version of PyTorch's old format")
    TorchUnpickler(file, size, storage).load()  # the system; storages are always little-endian
    unpickler = TorchUnpickler(file, size, storage)
    tree = unpickler.load()
    keys, storages = TorchUnpickler(file, size, storage).load(), unpickler.storages
    is_list = type(keys) is list and all(type(key) is str for key in keys)
    if not is_list or sorted(keys) != sorted(storages):
        raise Refused("its list of storages does not match its tensors")
    for key in keys:
        if file.read(8) != struct.pack("<q", storages[key].count):
            raise Refused(f"its storage {quoted(key)} is missing or has the wrong size")
        storages[key].data.offset = file.tell()
        file.seek(min(file.tell() + storages[key].data.length, size + 1))
    if file.tell() != size:
        raise Refused("it is truncated, or has extra bytes at the end")
    return tree


# Objects that its pickle may build: tensors that refer to storages.


@dataclass(frozen=True, slots=True)
class _DType(Opaque):
    """A dtype, or the class of a storage; `code` is empty for bytes of any dtype."""

    code: str


@dataclass(eq=False, slots=True)
class _Storage:
    kind: _DType
    count: int
    data: Blob
    is_big_endian: bool


class TorchUnpickler(ClosedUnpickler):
    """Interprets a pickle written by `torch.save`.

    Args:
        find: returns the bytes of a storage, given its key and its length in bytes.
        is_big_endian: byte order of the storages.
    """

    def __init__(
        self,
        file: BinaryIO,
        end: int,
        find: Callable[[str, int], Blob],
        is_big_endian: bool = False,
    ):
        super().__init__(file, end, _GLOBALS)
        self._find = find
        self._is_big_endian = is_big_endian
        self.storages: dict[str, _Storage] = {}

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _DType() as kind, str() as key, _, int() as count, *view) if (
                0 <= count < 2** 44 and view in ([], [None])
            ):
                if key not in self.storages:
                    length = count * np.dtype(kind.code or "u1").itemsize
                    data = self._find(key, length)
                    self.storages[key] = _Storage(kind, count, data, self._is_big_endian)
                storage = self.storages[key]
                if (storage.kind, storage.count) != (kind, count):
                    raise Refused(f"it describes the storage {quoted(key)} in two ways")
                return storage
            case ("module", *_):
                raise Refused("it holds a whole model; save its state_dict() instead")
        raise Refused("it refers to a storage in an unsupported way")


@Function
def _rebuild_tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any = None,
    hooks: Any = None,
    kind: Any = None,
    metadata: Any = None,
) -> Any:
    """Covers versions 1 to 3 of PyTorch's function; only the third has a dtype before metadata."""
    if not isinstance(storage, _Storage) or type(stride) is not tuple:
        return NotImplemented
    if not isinstance(kind, _DType):
        kind, metadata = storage.kind, kind or metadata
    if not kind.code or storage.kind.code not in ("", kind.code):
        return NotImplemented
    if metadata not in (None, {}):
        raise Refused("it has a conjugated or negated tensor; save tensor.resolve_conj() instead")
    shape = checked_shape(size)
    if len(stride) != len(shape) or any(type(n) is not int or n < 0 for n in (offset, *stride)):
        raise Refused("it has a tensor with malformed strides")
    dtype = np.dtype(kind.code).newbyteorder(">" if storage.is_big_endian else "<")
    # PyTorch may give an axis of length 1 a stride that NumPy rejects.
    strides = tuple(step if n > 1 else 0 for step, n in zip(stride, shape, strict=True))
    last = offset + sum(step * (n - 1) for step, n in zip(strides, shape, strict=True))
    if 0 not in shape and (last + 1) * dtype.itemsize > storage.data.length:
        raise Refused("it has a tensor that reaches beyond its storage")
    return Array(storage.data, dtype, shape, strides, offset, kind.name == "bfloat16")


@Function
def _rebuild_parameter(data: Any, grad: Any, hooks: Any, state: Any = None) -> Any:
    return data if isinstance(data, Array) else NotImplemented


@Function
def _rebuild_from_type_v2(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor or parameter with attributes, which are dropped."""
    is_tensor = function in (_rebuild_tensor, _rebuild_parameter)
    return function.apply(arguments) if is_tensor and type(arguments) is tuple else NotImplemented


@Function
def defaultdict(factory: Any = None) -> Any:
    return {}


@Function
def getattr_(target: Any, name: Any) -> Any:
    return target if isinstance(target, Opaque) else NotImplemented


_CODES = {
    "Float": ("float32", "f4"),
    "Double": ("float64", "f8"),
    "Half": ("float16", "f2"),
    "BFloat16": ("bfloat16", "u2"),
    "Long": ("int64", "i8"),
    "Int": ("int32", "i4"),
    "Short": ("int16", "i2"),
    "Char": ("int8", "i1"),
    "Byte": ("uint8", "u1"),
    "Bool": ("bool", "b1"),
    "ComplexFloat": ("complex64", "c8"),
    "ComplexDouble": ("complex128", "c16"),
}
_UNSIGNED = {"uint16": "u2", "uint32": "u4", "uint64": "u8"}
# Harmless classes that checkpoints contain next to their tensors. Anything else, such as sparse and
# quantised tensors, is refused with its name.
_OPAQUE = (
    "argparse.Namespace pathlib.PosixPath pathlib.WindowsPath datetime.datetime torch.device"
    " torch.Tensor torch.nn.parameter.Parameter addict.addict.Dict easydict.EasyDict"
    " yacs.config.CfgNode mmcv.utils.config.ConfigDict mmengine.config.config.ConfigDict"
    " mmengine.logging.history_buffer.HistoryBuffer builtins.set builtins.dict builtins.list"
    " builtins.int builtins.float __builtin__.set __builtin__.dict __builtin__.list"
    " __builtin__.int __builtin__.float"
)
_GLOBALS: dict[tuple[str, str], Any] = {
    **GLOBALS,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type_v2,
    ("torch", "Size"): as_tuple,
    ("torch.storage", "UntypedStorage"): _DType("bytes", ""),
    ("collections", "defaultdict"): defaultdict,
    ("builtins", "getattr"): getattr_,
    ("__builtin__", "getattr"): getattr_,
}
for _class, (_name, _code) in _CODES.items():
    _GLOBALS["torch", _class + "Storage"] = _GLOBALS["torch", _name] = _DType(_name, _code)
for _name, _code in _UNSIGNED.items():
    _GLOBALS["torch", _name] = _DType(_name, _code)
for _path in _OPAQUE.split():
    _module, _, _name = _path.rpartition(".")
    _GLOBALS[_module, _name] = Opaque(_path)
