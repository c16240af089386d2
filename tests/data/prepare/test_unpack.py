"""Archives, damaged, hostile or oversized: they are unpacked completely or refused."""

from __future__ import annotations

import io
import random
import shutil
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from tsm_jax.data.prepare import unpack as module
from tsm_jax.data.prepare.unpack import unpack
from tsm_jax.errors import UserError

CONTENT = {
    "top/text.txt": b"the same words again and again " * 400,
    "top/a/noise.avi": random.Random(0).randbytes(3000),
    "top/a/empty": b"",
    "top/b b/\u00e9.avi": b"\0" * 2000,
}


def tar(members, mode: str = "w") -> bytes:
    """Makes a tar file of (name or header, content)."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:
        for header, content in members:
            if isinstance(header, str):
                header = tarfile.TarInfo(header)
                header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return made.getvalue()


def zipped(members, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return made.getvalue()


FORMATS = {
    "a.tar": lambda: tar(CONTENT.items()),
    "a.tar.gz": lambda: tar(CONTENT.items(), "w:gz"),
    "a.tar.xz": lambda: tar(CONTENT.items(), "w:xz"),
    "a.tar.bz2": lambda: tar(CONTENT.items(), "w:bz2"),
    "a.zip": lambda: zipped(CONTENT.items()),
}


def unpacked(folder: Path, name: str, data: bytes) -> dict[str, bytes]:
    """Unpacks an archive of these bytes and returns its files."""
    (folder / name).write_bytes(data)
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / "out").mkdir()
    unpack(folder / name, folder / "out")
    found = [path for path in (folder / "out").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder / "out")): path.read_bytes() for path in found}


def refused(folder: Path, name: str, data: bytes) -> str:
    with pytest.raises(UserError) as caught:
        unpacked(folder, name, data)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_everything_is_unpacked(tmp_path, name):
    assert unpacked(tmp_path, name, FORMATS[name]()) == CONTENT


@pytest.mark.parametrize("name", FORMATS)
def test_a_flipped_bit_is_an_error_or_harmless(tmp_path, name):
    """A plain tar has checksums only for its headers, the first 512 bytes of each member."""
    data = FORMATS[name]()
    rng = random.Random(1)
    errors = 0
    for _ in range(80):
        position = rng.randrange(512 if name == "a.tar" else len(data))
        flipped = bytearray(data)
        flipped[position] ^= 1 << rng.randrange(8)
        try:
            found = unpacked(tmp_path, name, bytes(flipped))
        except UserError:
            errors += 1
        else:
            assert found == CONTENT
    assert errors > 40


@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_archive_is_an_error(tmp_path, name):
    data = FORMATS[name]()
    rng = random.Random(2)
    end = len(data.rstrip(b"\0")) if name == "a.tar" else len(data)
    lengths = {0, 1, 512, 1024, end - 1, *(rng.randrange(end) for _ in range(20))}
    for length in lengths:
        refused(tmp_path, name, data[:length])


def test_a_damaged_header_does_not_end_an_archive(tmp_path):
    data = bytearray(FORMATS["a.tar"]())
    data[data.index(b"top/a/noise.avi")] ^= 1
    assert "a header is damaged" in refused(tmp_path, "a.tar", bytes(data))


def test_data_after_the_end_is_not_ignored(tmp_path):
    data = FORMATS["a.tar"]()
    assert "after the end" in refused(tmp_path, "a.tar", data + data)


def header(name: str, **attributes) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


HOSTILE = {
    "up": header("../outside"),
    "absolute": header("/outside"),
    "inner up": header("a/../../outside"),
    "link": header("l", type=tarfile.SYMTYPE, linkname=".."),
    "hard link": header("h", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "device": header("d", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "pipe": header("p", type=tarfile.FIFOTYPE),
    "bell": header("../\x1b]0;x\x07"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_members_that_are_refused(tmp_path, kind):
    message = refused(tmp_path, "a.tar", tar([(HOSTILE[kind], b"")]))
    assert "lies outside" in message or "neither a file nor a folder" in message
    assert message.isprintable()
    assert not list(tmp_path.rglob("*outside*"))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_members_of_a_zip_that_are_refused(tmp_path, name):
    assert "lies outside" in refused(tmp_path, "a.zip", zipped([(name, b"x")]))


def test_a_link_in_a_zip(tmp_path):
    info = zipfile.ZipInfo("l")
    info.external_attr = 0o120777 << 16
    message = refused(tmp_path, "a.zip", zipped([(info, b"..")]))
    assert "neither a file nor a folder" in message


def test_an_encrypted_zip_and_an_unknown_method(tmp_path):
    data = zipped([("a", b"x" * 100)])
    central = data.rindex(b"PK\x01\x02")
    encrypted, unknown = bytearray(data), bytearray(data)
    encrypted[6] |= 1
    encrypted[central + 8] |= 1
    unknown[8] = unknown[central + 10] = 99
    assert "is encrypted" in refused(tmp_path, "a.zip", bytes(encrypted))
    assert "not supported" in refused(tmp_path, "a.zip", bytes(unknown))


def test_set_user_id_is_dropped(tmp_path):
    unpacked(tmp_path, "a.tar", tar([(header("s", mode=0o6777), b"")]))
    assert (tmp_path / "out" / "s").stat().st_mode & 0o7000 == 0


@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_a_bomb_is_refused_before_it_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setattr(module, "SMALL", 1000)
    zeros = [("bomb", bytes(10**7))]
    data = zipped(zeros) if name == "a.zip" else tar(zeros, "w:gz")
    assert "grows to more than 100 times" in refused(tmp_path, name, data)
    assert list((tmp_path / "out").iterdir()) == []


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_MEMBERS", 3)
    assert "more than 3 members" in refused(tmp_path, "a.zip", FORMATS["a.zip"]())


def test_more_than_the_disk_has(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(5000))
    (tmp_path / "a.zip").write_bytes(FORMATS["a.zip"]())
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="no space left"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def program(folder: Path, monkeypatch, script: str) -> Path:
    """Installs an `unrar` that runs `script` in the target folder; returns `folder`."""
    (folder / "unrar").write_text(f'#!/bin/sh\ncd "$6"\n{script}\n')
    (folder / "unrar").chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(module, "UNRAR", {"unrar": module.UNRAR["unrar"]})
    return folder


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("ln -s / link", "neither a file nor a folder"),
        ("mkfifo pipe", "neither a file nor a folder"),
        ("echo wrong checksum >&2; exit 3", "unrar says: wrong checksum"),
        ("touch 1 2 3 4", "more than 3 members"),
        ("true", "it is empty"),
        ("read password || exit 1", "unrar says"),
    ],
)
def test_bad_output_of_a_rar_program_is_refused(tmp_path, monkeypatch, script, says):
    monkeypatch.setattr(module, "MAX_MEMBERS", 3)
    program(tmp_path, monkeypatch, script)
    assert says in refused(tmp_path, "a.rar", b"Rar!")


def test_a_program_for_rar_that_writes_without_end_is_stopped(tmp_path, monkeypatch):
    program(tmp_path, monkeypatch, "exec sleep 60")
    free = iter([10**9, 10**9, 0])
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(next(free)))
    assert "grows to more than" in refused(tmp_path, "a.rar", b"Rar!")
