"""Refuses hostile pickles and archives, and damaged or unsupported files of PyTorch."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torch_files import entries, global_, old_of, storage, tensor, text, zip_of

from tsm_jax.errors import UserError
from tsm_jax.weights.torch_file import read_torch

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
FOUR = struct.pack("<4f", 1, 2, 3, 4)
GETATTR = global_("builtins.getattr")
REBUILD = global_("torch._utils._rebuild_tensor_v2")
REBUILD_TYPE = global_("torch._tensor._rebuild_from_type_v2")


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_torch(path)
    message = str(caught.value)
    assert str(path) in message and message.isprintable()
    return message


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    "value, name",
    [
        (global_("os.system") + text("true") + b"\x85R", "os.system"),
        (global_("torch.load") + text("x") + b"\x85R", "torch.load"),
        (global_("torch.serialization.load") + text("x") + b"\x85R", "torch.serialization.load"),
        (b"(" + text("true") + b"ios\nsystem\n", "INST"),
        (global_("builtins.getattr") + global_("os.path") + text("x") + b"\x86R", "os.path"),
        (global_("builtins.eval"), "builtins.eval"),
        (text("getattr") + text("__builtins__") + pickle.STACK_GLOBAL, "getattr.__builtins__"),
        (global_("__torch__.models.TSN"), "__torch__.models.TSN"),
    ],
)
def test_code_is_refused_by_name(tmp_path, value, name, is_zip):
    data = entries(x=value)
    assert name in refusal(tmp_path / "f", zip_of(data) if is_zip else old_of(data, {}, {}))


def test_code_in_the_other_pickles_of_the_old_format(tmp_path):
    attack = b"\x80\x02" + global_("os.system") + text("true") + b"\x85R."
    whole = old_of(entries(x=tensor()), {"0": FOUR}, {"0": 4})
    head = whole[: whole.index(b"\x80\x02}")]
    assert "os.system" in refusal(tmp_path / "f", head[:15] + attack)  # the version
    assert "os.system" in refusal(tmp_path / "f", head + attack)  # the system
    keys = whole.rindex(b"\x80\x02")
    assert "os.system" in refusal(tmp_path / "f", whole[:keys] + attack)


@pytest.mark.parametrize(
    "value, reason",
    [
        (tensor((5,)), "reaches beyond"),
        (tensor((4,), offset=1), "reaches beyond"),
        (tensor((2,), (4,)), "reaches beyond"),
        (tensor((2**40, 2), (0, 1)), "much more data"),
        (tensor((2**22,), (0,)), "much more data"),
        (tensor((2**43, 2**43), (0, 0)), "larger than any file"),
        (tensor((4,), (-1,)), "malformed strides"),
        (tensor((4,), (1, 1)), "malformed strides"),
        (tensor((4,), offset=-1), "malformed strides"),
        (tensor((-4,)), "malformed shape"),
        (tensor((1,) * 33, (1,) * 33), "malformed shape"),
        (tensor(of=text("0")), "in a way"),
        (tensor(of=storage(count=-1)), "unsupported way"),
        (tensor(of=storage(count=2**45)), "unsupported way"),
        (tensor(of=storage(count=5)), "'0' is missing or has the wrong size"),
        (tensor(of=storage("1")), "'1' is missing or has the wrong size"),
        (tensor(of=storage("../../0")), "is missing or has the wrong size"),
        (tensor(of=storage(kind="torch.UntypedStorage")), "only plain tensors"),
        (tensor(of=storage("0", 16, "torch.storage.UntypedStorage")), "in a way"),
        (tensor(of=storage(kind="torch.QInt8Storage")), "only plain tensors"),
        (tensor(of=storage(kind="argparse.Namespace")), "unsupported way"),
        (storage(), "not a tensor, a number"),
        (tensor() + b"0" + storage("0", 2, "torch.DoubleStorage"), "two ways"),
        (tensor(more=b"}" + text("conj") + b"\x88s"), "conjugated"),
        (tensor(more=b"NNN"), "in a way"),
        (tensor(rebuild="torch._utils._rebuild_sparse_tensor"), "only plain tensors"),
        (text("module") + text("x") + b"\x86Q", "whole model"),
        (b"NQ", "unsupported way"),
        (pickle.PERSID + b"0\n", "PERSID"),
        (GETATTR + global_("numpy.ndarray") + text("x") + b"\x86R", "in a way"),
        (REBUILD + b"}" + text("__defaults__") + b")sb", "sets the state"),
        (REBUILD_TYPE + b"(" + global_("numpy.dtype") + b"N)NtR", "in a way"),
        (REBUILD_TYPE + b"(" + REBUILD + b"N)NtR", "in a way"),
        (tensor(of=storage("0", 16, "torch.BoolStorage")), "neither true nor false"),
    ],
)
def test_inconsistent_tensors(tmp_path, value, reason):
    assert reason in refusal(tmp_path / "f", zip_of(entries(x=value)))


def test_the_interpreter_is_unchanged(tmp_path):
    """Python's own unpickler would set attributes of functions named in a file."""
    value = global_("torch._utils._rebuild_tensor_v2") + b"}" + text("__name__") + text("x") + b"sb"
    refusal(tmp_path / "f", zip_of(entries(x=value)))
    (tmp_path / "f").write_bytes(zip_of(entries(x=tensor())))
    assert list(read_torch(tmp_path / "f")["x"]) == [1, 2, 3, 4]


# Archives.


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


def with_flag(content: bytes, bit: int) -> bytes:
    """Sets a flag of the first member, in the directory and in its header."""
    data = bytearray(content)
    data[6] |= bit
    data[data.index(b"PK\x01\x02") + 8] |= bit
    return bytes(data)


def two_of_one_name() -> bytes:
    file = io.BytesIO(zip_of(entries(x=tensor())))
    with warnings.catch_warnings(), zipfile.ZipFile(file, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("archive/data/0", bytes(16))
    return file.getvalue()


def archive_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()


GOOD = zip_of(entries(x=tensor()))


def beyond_any_offset() -> bytes:
    """A member that begins at byte 2 ** 64 - 1."""
    file = io.BytesIO(GOOD)
    with zipfile.ZipFile(file, "a") as archive:
        archive.getinfo("archive/data/0").header_offset = 2**64 - 1
        archive._didModify = True
    return file.getvalue()


@pytest.mark.parametrize(
    "content, reason",
    [
        (changed(GOOD, FOUR, FOUR[:-1] + b"A"), "Bad CRC-32"),
        (with_flag(GOOD, 1), "encrypted"),
        (two_of_one_name(), "two members with the same name"),
        (beyond_any_offset(), "archive is damaged"),
        (zip_of(entries(x=tensor()), compression=zipfile.ZIP_LZMA), "an unusual compression"),
        (zip_of(entries(x=tensor()), compression=zipfile.ZIP_BZIP2), "an unusual compression"),
        (zip_of(entries(x=tensor()), {"0": FOUR[:-1]}), "the wrong size"),
        (zip_of(entries(x=tensor()), **{"constants.pkl": b""}), "TorchScript"),
        (zip_of(entries(x=tensor()), byteorder=b"middle"), "unknown byte order"),
        (zip_of(entries(x=tensor()) + b"."), "1 extra bytes"),
        (zip_of(b""), "truncated"),
        (zip_of(pickle.dumps([1], 2)), "single value"),
        (archive_of(word__document=b"x"), "without the data.pkl"),
        (archive_of(a__b__c=b""), "without the data.pkl"),
        (archive_of(**{"a__data.pkl": b"", "b__data.pkl": b""}), "without the data.pkl"),
        (archive_of(**{"..__..__data.pkl": b""}), "without the data.pkl"),
        (GOOD[:-1], "archive is damaged"),
        (GOOD[:200], "archive is damaged"),
        (changed(GOOD, b"PK\x01\x02", b"PK\x01\x03"), "archive is damaged"),
        (b"PK\x03\x04" + bytes(100), "archive is damaged"),
        (bytes(257) + b"ustar" + bytes(250), "tar format"),
        (b"\x80\x02}.", "neither a zip archive"),
        (b"", "empty"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"<!DOCTYPE html>", "web page"),
    ],
)
def test_other_and_damaged_files(tmp_path, content, reason):
    assert reason in refusal(tmp_path / "f", content)


OLD = old_of(entries(x=tensor()), {"0": FOUR}, {"0": 4})


@pytest.mark.parametrize(
    "content, reason",
    [
        (changed(OLD, pickle.dumps(1001, 2), pickle.dumps(1002, 2)), "unknown version"),
        (OLD + b"x", "extra bytes at the end"),
        (OLD[:-1], "truncated"),
        (old_of(entries(x=tensor()), {"0": FOUR}, {"0": 5}), "has the wrong size"),
        (old_of(entries(x=tensor()), {}, {}), "list of storages"),
        (old_of(entries(x=tensor()), {"0": FOUR, "1": b""}, {"0": 4, "1": 0}), "list of storages"),
        (changed(OLD, pickle.dumps(["0"], 2), pickle.dumps([0], 2)), "list of storages"),
        (changed(OLD, pickle.dumps(["0"], 2), pickle.dumps({"0": 1}, 2)), "list of storages"),
        (changed(OLD, pickle.dumps(["0"], 2), pickle.dumps(["0", "0"], 2)), "list of storages"),
    ],
)
def test_inconsistent_old_files(tmp_path, content, reason):
    assert reason in refusal(tmp_path / "f", content)


@pytest.mark.parametrize("whole", [GOOD, OLD], ids=["zip", "old"])
def test_truncated_anywhere(tmp_path, whole):
    for length in range(len(whole)):
        refusal(tmp_path / "f", whole[:length])


# Files that would take too much time or memory; one process reads them all.


def bomb(compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    zeros = bytes(60_000_000)
    kind = storage("0", len(zeros) // 4)
    return zip_of(entries(x=tensor((1,), of=kind)), {"0": zeros}, compression=compression)


def pickle_bomb() -> bytes:
    return zip_of(bytes(60_000_000), compression=zipfile.ZIP_DEFLATED)


def lying_bomb() -> bytes:
    """The directory says 16 bytes, the stream has 60 million."""
    content = zip_of(entries(x=tensor()), {"0": bytes(60_000_000)}, compression=8)
    return changed(content, struct.pack("<I", 60_000_000), struct.pack("<I", 16))


def overlapping() -> bytes:
    """A thousand members over the same megabyte."""
    names = [str(index) for index in range(1000)]
    value = b"](" + b"".join(tensor((1,), of=storage(n, 250_000)) for n in names) + b"e"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", entries(x=value))
        archive.writestr("archive/data/0", bytes(1_000_000))
        first = archive.getinfo("archive/data/0")
        for name in names[1:]:
            member = zipfile.ZipInfo(f"archive/data/{name}")
            member.header_offset, member.CRC = first.header_offset, first.CRC
            member.file_size = member.compress_size = first.file_size
            archive.filelist.append(member)
            archive.NameToInfo[member.filename] = member
        archive._didModify = True
    return file.getvalue()


def long_directory() -> bytes:
    entry = b"PK\x01\x02" + bytes(42)
    count = 2_000_000
    end = struct.pack("<4s4HIIH", b"PK\x05\x06", 0, 0, 65535, 65535, 46 * count, 4, 0)
    return b"PK\x03\x04" + entry * count + end


COSTLY = {
    "zip bomb": (bomb, "much more data"),
    "zip bomb of instructions": (pickle_bomb, "more than 32 MiB"),
    "zip bomb that lies": (lying_bomb, "damaged"),
    "overlapping members": (overlapping, ""),
    "long directory": (long_directory, "2 MiB of names"),
    "expanded": (lambda: zip_of(entries(x=tensor((2**28,), (0,)))), "much more data"),
    "expanded a little, often": (
        lambda: zip_of(entries(x=b"](" + tensor((4096,), (0,)) * 1000 + b"e")),
        "much more data",
    ),
    "old, petabyte": (
        lambda: old_of(entries(x=tensor(of=storage("0", 2**43))), {"0": b""}, {"0": 2**43}),
        "truncated",
    ),
    "memo": (lambda: zip_of(b"\x80\x02}r\xff\xff\xff\xff."), "memo index larger"),
}


@needs_proc
def test_costly_files_are_refused_at_once(tmp_path, read_in_a_child):
    for name, (make, _) in COSTLY.items():
        (tmp_path / name).write_bytes(make())
    results = read_in_a_child("torch_file.read_torch", *(tmp_path / name for name in COSTLY))
    for name, (_, reason) in COSTLY.items():
        message, _, grown = results[str(tmp_path / name)]
        assert message and reason in message, (name, message)
        assert grown < 50e6, name


@needs_proc
@pytest.mark.parametrize("kind, width, most", [("Float", 4, 2.2), ("BFloat16", 2, 3.2)])
def test_memory_of_reading(tmp_path, read_in_a_child, kind, width, most):
    """One tensor is the worst case: the reader of the archive briefly holds it twice."""
    path, size = tmp_path / "f", 2**25
    value = tensor((size // width,), of=storage("0", size // width, f"torch.{kind}Storage"))
    path.write_bytes(zip_of(entries(x=value), {"0": np.random.default_rng(0).bytes(size)}))
    message, _, grown = read_in_a_child("torch_file.read_torch", path)[str(path)]
    assert message is None
    assert grown < most * size
