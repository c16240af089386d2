"""Hostile files: no code is executed, and every file is refused within moments."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tsm_jax.errors import UserError
from tsm_jax.weights import paddle_pickle
from tsm_jax.weights.paddle_pickle import read_paddle
from tsm_jax.weights.pickle_values import unfold

PROTO_4 = b"\x80\x04"
MARK, STOP = b"(", b"."


def text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + pickle.STACK_GLOBAL


def as_entry(value: bytes) -> bytes:
    """Returns a file whose dictionary contains `value`."""
    return PROTO_4 + b"}" + text("x") + value + b"s" + STOP


def refusal(path: Path, content: bytes | None = None) -> str:
    """Returns the error message, after checking that it is one line that names the file."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_paddle(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.isprintable()
    return message


# Code. Each payload creates the folder `marker` if Python's own pickle reads it.


def by_global(marker: str) -> bytes:
    return b"cposix\nmkdir\n" + text(marker) + b"\x85R"


def by_stack_global(marker: str) -> bytes:
    return stack_global("os", "mkdir") + text(marker) + b"\x85R"


def by_nested_name(marker: str) -> bytes:
    return stack_global("shutil", "os.mkdir") + text(marker) + b"\x85R"


def by_system(marker: str) -> bytes:
    return stack_global("os", "system") + text(f"mkdir {marker}") + b"\x85R"


def by_eval(marker: str) -> bytes:
    return stack_global("builtins", "eval") + text(f"__import__('os').mkdir({marker!r})") + b"\x85R"


def by_inst(marker: str) -> bytes:
    return MARK + text(marker) + b"iposix\nmkdir\n"


def by_obj(marker: str) -> bytes:
    return MARK + stack_global("os", "mkdir") + text(marker) + b"o"


def by_newobj(marker: str) -> bytes:
    calls = stack_global("builtins", "map") + stack_global("os", "mkdir")
    calls += b"]" + text(marker) + b"a\x86" + pickle.NEWOBJ
    return stack_global("builtins", "tuple") + calls + b"\x85" + pickle.NEWOBJ


def by_newobj_ex(marker: str) -> bytes:
    calls = stack_global("builtins", "map") + stack_global("os", "mkdir")
    calls += b"]" + text(marker) + b"a\x86}" + pickle.NEWOBJ_EX
    return stack_global("builtins", "tuple") + calls + b"\x85}" + pickle.NEWOBJ_EX


def by_setstate(marker: str) -> bytes:
    namespace = stack_global("types", "SimpleNamespace") + b")" + pickle.NEWOBJ
    state = b"}" + text("__setstate__") + stack_global("os", "mkdir") + b"sb"
    return namespace + state + text(marker) + b"b"


def by_codec(marker: str) -> bytes:
    """The name of a codec is the name of a module that is imported."""
    imported = stack_global("_codecs", "encode") + text("x") + text("idna") + b"\x86R"
    return imported + b"0" + by_global(marker)


def through_the_memo(marker: str) -> bytes:
    stored = stack_global("os", "mkdir") + pickle.BINPUT + b"\x07" + b"0"
    return stored + text(marker) + pickle.BINPUT + b"\x08" + b"0h\x07h\x08\x85R"


def after_a_tuple_call(marker: str) -> bytes:
    inner = stack_global("os", "mkdir") + text(marker) + b"\x85R\x85\x85R"
    return stack_global("builtins", "tuple") + inner


PAYLOADS = [
    by_global,
    by_stack_global,
    by_nested_name,
    by_system,
    by_eval,
    by_inst,
    by_obj,
    by_newobj,
    by_newobj_ex,
    by_setstate,
    by_codec,
    through_the_memo,
    after_a_tuple_call,
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.__name__)
def test_code_is_not_executed(tmp_path, payload):
    marker = tmp_path / "marker"
    content = as_entry(payload(str(marker)))
    message = refusal(tmp_path / "evil.pdparams", content)
    assert not marker.exists()
    assert "do not trust it" in message or "no weight file needs" in message
    pickle.loads(content)  # the attack works with Python's own pickle
    assert marker.is_dir()


@pytest.mark.parametrize(
    "value",
    {
        "EXT1": pickle.EXT1 + b"\x01",
        "EXT2": pickle.EXT2 + b"\x01\x00",
        "EXT4": pickle.EXT4 + b"\x01\x00\x00\x00",
        "PERSID": pickle.PERSID + b"1\n",
        "LONG4": pickle.LONG4 + b"\x01\x00\x00\x00\x01",
        "DUP": b"N" + pickle.DUP,
        "NEXT_BUFFER": pickle.NEXT_BUFFER,
        "READONLY_BUFFER": b"N" + pickle.READONLY_BUFFER,
        "EMPTY_SET": pickle.EMPTY_SET,
        "FROZENSET": MARK + pickle.FROZENSET,
        "ADDITEMS": b"]" + MARK + pickle.ADDITEMS,
        "INT": b"I1\n",
        "STRING": b"S'a'\n",
        "GET": b"g0\n",
        "DICT": MARK + pickle.DICT,
    }.items(),
    ids=lambda item: item[0],
)
def test_unneeded_instructions(tmp_path, value):
    name, instructions = value
    assert f"instruction {name}," in refusal(tmp_path / "f", as_entry(instructions))


DTYPE = stack_global("numpy", "dtype")
RECONSTRUCT = stack_global("numpy.core.multiarray", "_reconstruct")
NDARRAY = stack_global("numpy", "ndarray")
SCALAR = stack_global("numpy.core.multiarray", "scalar")
ENCODE = stack_global("_codecs", "encode")
TUPLE = stack_global("builtins", "tuple")


@pytest.mark.parametrize(
    "value, reason",
    [
        (DTYPE + text("O8") + b"\x89\x88\x87R", "Python objects"),
        (DTYPE + text("O") + b"\x89\x88\x87R", "Python objects"),
        (DTYPE + text("U5") + b"\x89\x88\x87R", "not a plain number"),
        (DTYPE + text("V0") + b"\x89\x88\x87R", "not a plain number"),
        (DTYPE + text("f4,O") + b"\x89\x88\x87R", "not a plain number"),
        (DTYPE + b"]\x89\x88\x87R", "in a way that no weight file needs"),
        (RECONSTRUCT + DTYPE + b"K\x00\x85C\x01b\x87R", "in a way that no weight file needs"),
        (RECONSTRUCT + NDARRAY + b"K\x01\x85C\x01b\x87R", "in a way that no weight file needs"),
        (RECONSTRUCT + NDARRAY + b"K\x00\x85C\x01O\x87R", "in a way that no weight file needs"),
        (RECONSTRUCT + NDARRAY + b"K\x00\x85C\x01b\x87R", "array without values"),
        (RECONSTRUCT + NDARRAY + b"K\x00\x85C\x01b\x87R}b", "fills an array in a way"),
        (NDARRAY + b"K\x02\x85\x85R", "in a way that no weight file needs"),
        (NDARRAY + b"]R", "not a function"),
        (SCALAR + DTYPE + text("f4") + b"\x89\x88\x87RC\x04abcd\x86R", "without a byte order"),
        (ENCODE + text("x") + text("rot13") + b"\x86R", "in a way that no weight file needs"),
        (ENCODE + text("Ā") + text("latin1") + b"\x86R", "beyond latin-1"),
        (TUPLE + b"K\x05\x85R", "in a way that no weight file needs"),
        (NDARRAY, "not a tensor, a number"),
        (DTYPE + text("f4") + b"\x89\x88\x87R", "not a tensor, a number"),
        (b"})b", "not a NumPy array"),
        (NDARRAY + b"}b", "not a NumPy array"),
        (text("1") + pickle.BINPERSID, "external data"),
        (b"}N}s", "neither a short text"),
        (b"}" + text("k" * 300) + b"Ns", "neither a short text"),
        (b"N" + text("k") + b"Ns", "not a dictionary"),
        (b"}" + MARK + (text("k") + b"N") * 2 + b"u", "'k' twice"),
        (b"}" + MARK + b"Nu", "key without a value"),
        (b"NNa", "damaged"),
        (b"h\x63", "damaged"),
        (pickle.LONG1 + b"\x09" + bytes(8) + b"\x01", "64 bits"),
        (pickle.LONG1 + b"\xff" + b"\x7f" * 255, "64 bits"),
        (pickle.BINSTRING + b"\xff\xff\xff\xff", "negative length"),
        (pickle.SHORT_BINUNICODE + b"\x01\xff", "damaged"),
        (pickle.GLOBAL + b"os\nsystem" + b"x" * 300, "does not end"),
        (stack_global("os", "sy\nstem\x1b" + "x" * 200), "do not trust it"),
        (b"NN" + pickle.STACK_GLOBAL, "damaged"),
        (b"}" + MARK + b")Nu", "neither a short text"),
        (b"}" + MARK + b"K\x01NK\x01Nu", "'1' twice"),
        (b"N" + pickle.LONG_BINPUT + b"\xff\xff\xff\xff", "memo index larger"),
        (b"\x80\x04", "instruction PROTO"),
        (b"\xff", "byte 255, which is not a pickle instruction"),
    ],
)
def test_malformed_values(tmp_path, value, reason):
    message = refusal(tmp_path / "f", as_entry(value))
    assert re.search(reason, message), message


@pytest.mark.parametrize(
    "parts, reason",
    [
        ({"shape": [3]}, "has the wrong number of bytes"),
        ({"shape": [1]}, "has the wrong number of bytes"),
        ({"shape": [2, 2**50]}, "larger than any file"),
        ({"shape": [2**30, 2**30]}, "larger than any file"),
        ({"shape": [0, 2**39, 2**39]}, "larger than any file"),
        ({"shape": [1] * 33}, "malformed shape"),
        ({"shape": [2**64 - 1]}, "malformed shape"),
        ({"dtype": b"f9"}, "not a plain number"),
        ({"dtype": b"O8"}, "Python objects"),
        ({"order": b"?"}, "kind of dtype"),
        ({"data": b"N"}, "not bytes"),
        ({"data": b"]"}, "not bytes"),
        ({"dtype": b"b1", "data": b"C\x02\x02\x01"}, "neither true nor false"),
    ],
)
def test_inconsistent_arrays(tmp_path, array_pickle, parts, reason):
    assert reason in refusal(tmp_path / "f", array_pickle(**parts))


@pytest.mark.parametrize(
    "characters, reason",
    [
        ("a" * 900, "has the wrong number of bytes"),
        ("é" * 700, "has the wrong number of bytes"),
        ("é" * 700 + "Ā", "not latin-1"),
        ("é" * 700 + "😀", "not latin-1"),
        ("a" * 700, "has the wrong number of bytes"),
        ("é" * 801, "has the wrong number of bytes"),
    ],
)
def test_inconsistent_bytes_written_as_text(tmp_path, array_pickle, characters, reason):
    data = b"c_codecs\nencode\n" + text(characters) + text("latin1") + b"\x86R"
    assert reason in refusal(tmp_path / "f", array_pickle(shape=[200], data=data))


def test_the_template_of_those_arrays_is_valid(tmp_path, array_pickle):
    (tmp_path / "f").write_bytes(array_pickle())
    np.testing.assert_array_equal(read_paddle(tmp_path / "f")["x"], [0, 0])


# Files of other kinds, or damaged.


def test_missing_file_and_folder(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.pdparams")
    assert "folder" in refusal(tmp_path)


def test_zero_byte_in_the_name():
    with pytest.raises(UserError, match="null byte"):
        read_paddle("a\0b")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")


def test_zip_of_pytorch(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        archive.writestr("model/data.pkl", b"")
    message = refusal(tmp_path / "model.pth")
    assert "zip" in message and "PyTorch" in message


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\n<HTML>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "text file"),
        (b"\x1f\x8b\x08abc", "gzip"),
        (bytes(100), ".pdiparams"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2), "PyTorch"),
        (b"\x89HDF\r\n", "not a pickle"),
        (pickle.dumps({"a": 1}, 1), "not a pickle"),
        (pickle.dumps({"a": 1}, 0), "text file"),
        (b"\x80\x06}.", "protocol 6"),
        (b"\x80", "truncated"),
        (pickle.dumps([1, 2], 4), "single value"),
        (pickle.dumps(("name", np.ones(2)), 4), "single value"),
        (pickle.dumps({"a": 1}, 4) + b"x", "1 extra bytes"),
        (b"\x80\x04}}.", "middle of a container"),
        (pickle.dumps({1: 2}, 4), "by name"),
        (b"\x80\x04(}.", "middle of a container"),
        (b"\x80\x04.", "damaged"),
        (b"\x80\x04t.", "damaged"),
    ],
)
def test_other_files(tmp_path, content, reason):
    assert reason in refusal(tmp_path / "f", content)


@pytest.mark.parametrize("name", ["tiny_protocol2.pdparams", "tiny_protocol4.pdparams"])
def test_truncated_anywhere(tmp_path, goldens, name):
    whole = (goldens / name).read_bytes()
    for length in range(1, len(whole), 3):
        refusal(tmp_path / "f", whole[:length])


def test_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(pickle.dumps({"x": np.zeros(10_000, np.float32)}, 4))

    def shrink(tree: object, size: int) -> object:
        with path.open("r+b") as file:
            file.truncate(1000)
        return unfold(tree, size)

    monkeypatch.setattr(paddle_pickle, "unfold", shrink)  # between the structure and the tensors
    assert "has the wrong number of bytes" in refusal(path)


# Files that would take too much time or memory. One process reads them all and measures.


def kept_apart(value: bytes, index: int) -> bytes:
    """Stores a value in the memo only."""
    return value + pickle.LONG_BINPUT + struct.pack("<I", index) + pickle.POP


def again(index: int) -> bytes:
    return pickle.LONG_BINGET + struct.pack("<I", index)


def shared_lists(levels: int, copies: int) -> bytes:
    """A list of `copies` of a list of `copies` of ...: `copies ** levels` values."""
    bomb = kept_apart(b"](" + b"N" * copies + b"e", 0)
    for level in range(levels):
        bomb += kept_apart(b"](" + again(level) * copies + b"e", level + 1)
    return as_entry(bomb + again(levels))


def a_text_encoded_again_and_again() -> bytes:
    stored = kept_apart(text("a" * 1_000_000), 0) + kept_apart(ENCODE, 1)
    stored += kept_apart(text("latin1"), 2)
    call = again(1) + again(0) + again(2) + b"\x86R"
    return as_entry(stored + b"](" + call * 10_000 + b"e")


def arguments_met_again_and_again() -> bytes:
    stored = kept_apart(MARK + b"N" * 40_000 + b"t", 0) + kept_apart(TUPLE, 1)
    return as_entry(stored + b"](" + (again(1) + again(0) + b"R") * 10_000 + b"e")


def pairs_met_again_and_again() -> bytes:
    """Passes the same items, as written by Python 2, to ten thousand dictionaries."""
    pairs = b"](" + b"".join(b"](" + text(str(i)) + b"Ne" for i in range(20_000)) + b"e"
    stored = kept_apart(pairs, 0) + kept_apart(stack_global("collections", "OrderedDict"), 1)
    return as_entry(stored + b"](" + (again(1) + again(0) + b"\x85R") * 10_000 + b"e")


def tuples_of_tuples_as_a_key() -> bytes:
    """Hashing the key would hash 2 ** 1000 values."""
    key = kept_apart(b")", 0)
    for level in range(1000):
        key += kept_apart(again(level) * 2 + b"\x86", level + 1)
    return as_entry(key + b"}" + again(1000) + b"Ns")


def numbers_as_keys() -> bytes:
    """All keys collide: the hash of an integer is its value modulo 2 ** 61 - 1."""
    numbers = [(i * (2**61 - 1)).to_bytes(10, "little") for i in range(50_000)]
    return as_entry(b"}(" + b"".join(pickle.LONG1 + b"\x0a" + n + b"N" for n in numbers) + b"u")


def an_array_a_thousand_times() -> bytes:
    array = pickle.dumps(np.zeros(50_000, np.float32), 2)[2:-1]
    memoized = array + pickle.LONG_BINPUT + struct.pack("<I", 99)
    return as_entry(b"](" + memoized + again(99) * 1000 + b"e")


def many_long_names() -> bytes:
    names = b"".join(text(f"{index:0256d}") + b"N" for index in range(20_000))
    return PROTO_4 + b"}(" + names + b"u" + STOP


def a_petabyte_of(instruction: bytes) -> bytes:
    return PROTO_4 + b"}" + text("x") + instruction + struct.pack("<Q", 10**15) + b"s" + STOP


MILLION = 1_000_000
COSTLY = {
    "petabyte of bytes": (a_petabyte_of(pickle.BINBYTES8), "truncated"),
    "petabyte of text": (a_petabyte_of(pickle.BINUNICODE8), "truncated"),
    "petabyte in a frame": (a_petabyte_of(pickle.FRAME), "truncated"),
    "million lists": (
        PROTO_4 + b"]" * MILLION + b"a" * (MILLION - 1) + STOP,
        "pickle instructions",
    ),
    "million marks": (PROTO_4 + MARK * MILLION + b"t" * MILLION + STOP, "pickle instructions"),
    "million tuples": (as_entry(b")" + b"\x85" * MILLION), "pickle instructions"),
    "tuples below the limits": (as_entry(b")" + b"\x85" * 100_000), "nests more than"),
    "million dicts": (PROTO_4 + (b"}" + text("x")) * MILLION + STOP, "pickle instructions"),
    "million values": (PROTO_4 + b"](" + b"N" * MILLION + b"e" + STOP, "pickle instructions"),
    "million memo entries": (PROTO_4 + b"}" + b"\x94" * MILLION + STOP, "pickle instructions"),
    "memo entry of a high number": (PROTO_4 + b"}r\xff\xff\xff\xff.", "memo index larger"),
    "shared lists, deep": (shared_lists(60, 2), "nests more than"),
    "shared lists, wide": (shared_lists(5, 200), "unfolds to more than"),
    "list in itself": (
        as_entry(kept_apart(b"]", 0) + again(0) + again(0) + b"a"),
        "contains itself",
    ),
    "text encoded again and again": (a_text_encoded_again_and_again(), "much more data"),
    "arguments met again and again": (arguments_met_again_and_again(), "as_tuple in a way"),
    "array a thousand times": (an_array_a_thousand_times(), "much more data"),
    "pairs met again and again": (pairs_met_again_and_again(), "ordered_dict in a way"),
    "tuples of tuples as a key": (tuples_of_tuples_as_a_key(), "neither a short text"),
    "numbers as keys": (numbers_as_keys(), "3,000 numbers"),
    "petabyte in an array of bytes": (a_petabyte_of(pickle.BYTEARRAY8), "truncated"),
    "many long names": (many_long_names(), "names take more"),
}

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")


@needs_proc
def test_costly_files_are_refused_at_once(tmp_path, array_pickle, read_in_a_child):
    reasons = {tmp_path / name: reason for name, (_, reason) in COSTLY.items()}
    for name, (content, _) in COSTLY.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "petabyte of numbers").write_bytes(array_pickle(shape=[10**15]))
    reasons[tmp_path / "petabyte of numbers"] = "larger than any file"
    write_sparse(tmp_path / "gigabytes and then an attack")
    reasons[tmp_path / "gigabytes and then an attack"] = "do not trust it"
    results = read_in_a_child("paddle_pickle.read_paddle", *reasons)
    for path, reason in reasons.items():
        message, seconds, _ = results[str(path)]
        assert message and reason in message, (path, message)
        assert seconds < 1.0, path
    assert sum(grown for _, _, grown in results.values()) < 100e6


def write_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(PROTO_4 + b"}" + text("x") + pickle.BINBYTES8 + struct.pack("<Q", 2**32))
        file.seek(2**32, os.SEEK_CUR)
        file.write(b"s" + by_global("/nowhere") + STOP)


@needs_proc
@pytest.mark.parametrize("protocol", [2, 4])
def test_memory_of_reading(tmp_path, protocol, read_in_a_child):
    """Less than twice the size of the tensors, for both spellings of bytes."""
    array = np.random.default_rng(0).normal(size=(10, 600_000)).astype(np.float32)
    path = tmp_path / "f"
    path.write_bytes(pickle.dumps({str(index): row for index, row in enumerate(array)}, protocol))
    message, seconds, grown = read_in_a_child("paddle_pickle.read_paddle", path)[str(path)]
    assert message is None
    assert 0.9 * array.nbytes < grown < 1.5 * array.nbytes
    assert seconds < 2.0
