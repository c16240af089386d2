"""Writes PyTorch's two formats instruction by instruction, so that tests run without PyTorch."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence

OLD_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
OLD_HEAD += pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)


def text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    return pickle.LONG1 + b"\x09" + value.to_bytes(9, "little", signed=True)


def integers(values: Sequence[int]) -> bytes:
    return pickle.MARK + b"".join(map(integer, values)) + pickle.TUPLE


def global_(path: str) -> bytes:
    return pickle.GLOBAL + "{0}\n{2}\n".format(*path.rpartition(".")).encode()


def storage(key: str = "0", count: int = 4, kind: str = "torch.FloatStorage") -> bytes:
    pid = text("storage") + global_(kind) + text(key) + text("cpu") + integer(count)
    return pickle.MARK + pid + pickle.TUPLE + pickle.BINPERSID


def tensor(
    size: Sequence[int] = (4,),
    stride: Sequence[int] = (1,),
    offset: int = 0,
    *,
    of: bytes | None = None,
    more: bytes = b"",
    rebuild: str = "torch._utils._rebuild_tensor_v2",
) -> bytes:
    """Returns a call of `rebuild`; `more` has the arguments after requires_grad and the hooks."""
    where = (storage() if of is None else of) + integer(offset) + integers(size) + integers(stride)
    hooks = b"\x89" + global_("collections.OrderedDict") + b")R"
    return global_(rebuild) + pickle.MARK + where + hooks + more + pickle.TUPLE + pickle.REDUCE


def entries(**values: bytes) -> bytes:
    """Returns the pickle of a dictionary."""
    items = b"".join(text(key) + value for key, value in values.items())
    return b"\x80\x02}" + pickle.MARK + items + b"u."


def zip_of(
    data: bytes,
    storages: Mapping[str, bytes] = {"0": struct.pack("<4f", 1, 2, 3, 4)},
    *,
    compression: int = zipfile.ZIP_STORED,
    **members: bytes,
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return file.getvalue()


def old_of(data: bytes, storages: Mapping[str, bytes], counts: Mapping[str, int]) -> bytes:
    parts = [struct.pack("<q", counts[key]) + content for key, content in storages.items()]
    return OLD_HEAD + data + pickle.dumps(list(storages), 2) + b"".join(parts)
