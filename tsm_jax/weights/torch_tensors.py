"""What the pickle of a PyTorch file may build: tensors that refer to storages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from tsm_jax.weights.closed_pickle import ClosedUnpickler
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
)


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
    """Interprets a pickle by `torch.save`.

    Args:
        file: as for `ClosedUnpickler`.
        end: as for `ClosedUnpickler`.
        find: gives the bytes of a storage by its key and its length in bytes.
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
        raise Refused("it refers to a storage in a way that is not read")


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
    """Versions 1 to 3 of PyTorch's function: only the third has a dtype before the metadata."""
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
    # NumPy refuses the stride that PyTorch may give an axis of length 1.
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
# Harmless classes that checkpoints have beside their tensors. What is not here, such as sparse and
# quantised tensors, is refused by its name.
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
