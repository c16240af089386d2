"""Data sets from a server on this machine: announced, fetched, unpacked, continued."""

from __future__ import annotations

import functools
import io
import os
import shutil
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tsm_jax.data.prepare import dataset_download
from tsm_jax.data.prepare.dataset_download import DATASETS, DataSet, fetch_dataset
from tsm_jax.data.prepare.entries import find_videos
from tsm_jax.data.prepare.unpack import UNRAR, find_unrar, unpack
from tsm_jax.errors import UserError


class Handler(SimpleHTTPRequestHandler):
    requested: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.requested.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def published(tmp_path):
    """The folder that the server serves, and its address."""
    folder = tmp_path / "published"
    folder.mkdir()
    Handler.requested.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def write_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))


@pytest.fixture
def kinetics(published) -> DataSet:
    folder, url = published
    write_tar(folder / "part_0.tar.gz", ["train/zumba/a.mp4", "train/archery/b.mp4"])
    write_tar(folder / "part_1.tar.gz", ["train/zumba/c.mp4"])
    (folder / "train_link.list").write_text(f"{url}/part_0.tar.gz\n{url}/part_1.tar.gz\n")
    (folder / "train.list").write_text("zumba/a.mp4 0\n")
    return DataSet(
        "k400", 1000, 2000, files=[f"{url}/train.list"], link_lists=[f"{url}/train_link.list"]
    )


def test_parts_are_merged_and_deleted(kinetics, tmp_path, capsys):
    output = tmp_path / "k400"
    fetch_dataset(kinetics, str(output), keep_archives=False)
    assert find_videos(output / "videos") == ["archery/b.mp4", "zumba/a.mp4", "zumba/c.mp4"]
    assert (output / "train.list").read_text() == "zumba/a.mp4 0\n"
    assert not list(output.rglob("*.tar.gz"))
    first = capsys.readouterr().out.splitlines()[0]
    assert "about 0.0 GB to download" in first and "GB free" in first


def test_unpacked_archives_are_not_fetched_again(kinetics, tmp_path):
    output = tmp_path / "k400"
    fetch_dataset(kinetics, str(output), keep_archives=False)
    before = len(Handler.requested)
    fetch_dataset(kinetics, str(output), keep_archives=False)
    assert len(Handler.requested) == before


def test_continues_after_a_broken_part(kinetics, published, tmp_path):
    folder, _ = published
    whole = (folder / "part_1.tar.gz").read_bytes()
    (folder / "part_1.tar.gz").write_bytes(whole[:40])
    output = tmp_path / "k400"
    with pytest.raises(UserError, match=r"part_1.tar.gz cannot be unpacked: .*; delete it"):
        fetch_dataset(kinetics, str(output), keep_archives=False)
    assert find_videos(output / "videos") == ["archery/b.mp4", "zumba/a.mp4"]
    (output / "archives" / "part_1.tar.gz").unlink()
    (folder / "part_1.tar.gz").write_bytes(whole)
    fetch_dataset(kinetics, str(output), keep_archives=True)
    assert len(find_videos(output / "videos")) == 3
    assert (output / "archives" / "part_1.tar.gz").exists()
    assert Handler.requested.count("/part_0.tar.gz") == 1


def test_too_little_space_is_reported_before_any_download(kinetics, tmp_path):
    huge = replace(kinetics, unpacked_bytes=10**18)
    with pytest.raises(UserError, match=r"needs 1000000000\.0 GB"):
        fetch_dataset(huge, str(tmp_path / "k400"), keep_archives=False)
    assert not Handler.requested


def test_equal_names_of_different_archives(kinetics, published, tmp_path):
    """Parts of training and validation may have the same names."""
    folder, url = published
    (folder / "val").mkdir()
    write_tar(folder / "val" / "part_0.tar.gz", ["val/zumba/v.mp4"])
    (folder / "val_link.list").write_text(f"{url}/val/part_0.tar.gz\n")
    both = replace(kinetics, link_lists=[*kinetics.link_lists, f"{url}/val_link.list"])
    fetch_dataset(both, str(tmp_path / "k400"), keep_archives=False)
    assert "zumba/v.mp4" in find_videos(tmp_path / "k400" / "videos")
    assert len(find_videos(tmp_path / "k400" / "videos")) == 4
    (folder / "val_link.list").write_text(f"{url}/val/part_0.tar.gz\n" * 2)
    with pytest.raises(UserError, match="listed twice"):
        fetch_dataset(both, str(tmp_path / "again"), keep_archives=False)


def test_files_of_one_name_in_two_parts(kinetics, tmp_path):
    fetch_dataset(kinetics, str(tmp_path / "k400"), keep_archives=True)
    (tmp_path / "k400" / "archives" / "part_1.tar.gz.unpacked").unlink()
    fetch_dataset(kinetics, str(tmp_path / "k400"), keep_archives=True)  # as after a killed run
    (tmp_path / "k400" / "videos" / "zumba" / "c.mp4").write_bytes(b"xyz")
    (tmp_path / "k400" / "archives" / "part_1.tar.gz.unpacked").unlink()
    with pytest.raises(UserError, match=r"c.mp4 exists and differs from .* in part_1.tar.gz"):
        fetch_dataset(kinetics, str(tmp_path / "k400"), keep_archives=True)
    assert (tmp_path / "k400" / "videos" / "zumba" / "c.mp4").read_bytes() == b"xyz"


@pytest.mark.parametrize("end", ["..", "", ".hidden", "a%2fb", "a?b"])
def test_an_address_without_a_file_name(published, tmp_path, end):
    folder, url = published
    (folder / "link.list").write_text(f"{url}/{end}\n")
    dataset = DataSet("k400", 10, 10, link_lists=[f"{url}/link.list"])
    with pytest.raises(UserError, match="does not end in a file name"):
        fetch_dataset(dataset, str(tmp_path / "k400"), keep_archives=False)


def test_a_damaged_archive_is_kept_and_leaves_no_files(kinetics, published, tmp_path):
    folder, _ = published
    data = bytearray((folder / "part_1.tar.gz").read_bytes())
    data[-6] ^= 1  # in the checksum
    (folder / "part_1.tar.gz").write_bytes(data)
    output = tmp_path / "k400"
    with pytest.raises(UserError, match=r"part_1.tar.gz cannot be unpacked: CRC check failed"):
        fetch_dataset(kinetics, str(output), keep_archives=False)
    assert find_videos(output / "videos") == ["archery/b.mp4", "zumba/a.mp4"]
    assert {p.name for p in output.iterdir()} == {"train.list", "train.list.sha256"} | {
        *("train.list.lock", "videos", "archives")
    }
    names = {p.name for p in (output / "archives").iterdir()}
    assert "part_1.tar.gz" in names and "part_1.tar.gz.unpacked" not in names


@pytest.fixture
def ucf101(published) -> DataSet:
    folder, url = published
    with zipfile.ZipFile(folder / "splits.zip", "w") as zipped:
        zipped.writestr("ucfTrainTestlist/classInd.txt", "1 Archery\n")
    write_tar(folder / "UCF101.rar", ["UCF-101/Archery/v_Archery_g01_c01.avi"])
    archives = [(f"{url}/splits.zip", "ucfTrainTestlist"), (f"{url}/UCF101.rar", "videos")]
    return DataSet("ucf101", 1000, 1000, archives=archives)


def test_a_rar_goes_to_an_installed_program(ucf101, tmp_path, monkeypatch):
    """`unrar` is a script here that unpacks a tar file, given the arguments of the real one."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "unrar").write_text('#!/bin/sh\ntar -xzf "$5" -C "$6"\n')
    os.chmod(programs / "unrar", stat.S_IRWXU)
    only(monkeypatch, "unrar")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    output = tmp_path / "ucf101"
    fetch_dataset(ucf101, str(output), keep_archives=False)
    assert find_videos(output / "videos") == ["Archery/v_Archery_g01_c01.avi"]
    assert (output / "ucfTrainTestlist" / "classInd.txt").exists()
    assert {p.name for p in output.iterdir()} == {"videos", "ucfTrainTestlist", "archives"}


def only(monkeypatch, program: str) -> None:
    """Makes `program` the only one available for rar."""
    others = {name: None for name in UNRAR if name != program}
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: others.get(name, which(name)))


def write_rar(path: Path, files: dict[str, bytes]) -> None:
    """Makes an archive of version 4 that stores files uncompressed."""

    def block(kind: int, flags: int, body: bytes, data: bytes = b"") -> bytes:
        head = struct.pack("<BHH", kind, flags, 7 + len(body)) + body
        return struct.pack("<H", zlib.crc32(head) & 0xFFFF) + head + data

    content = b"Rar!\x1a\x07\x00" + block(0x73, 0, bytes(6))
    for name, data in files.items():
        stored = name.replace("/", "\\").encode()
        sizes = struct.pack("<IIBI", len(data), len(data), 3, zlib.crc32(data))
        about = struct.pack("<IBBHI", 0x5A210000, 20, 0x30, len(stored), 0o100644)
        content += block(0x74, 0x8000, sizes + about + stored, data)
    path.write_bytes(content + block(0x7B, 0x4000, b""))


@pytest.fixture(params=[*UNRAR])
def real_program(request, monkeypatch) -> str:
    only(monkeypatch, request.param)
    try:
        return find_unrar()
    except UserError:
        pytest.skip(f"there is no {request.param} here that knows rar")


def test_real_programs_unpack_a_rar(real_program, tmp_path):
    files = {
        "UCF-101/Archery/v_Archery_g01_c01.avi": b"abc" * 1000,
        "UCF-101/b b.avi": bytes(70000),
    }
    write_rar(tmp_path / "a b.rar", files)
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "a b.rar", tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files} == files


def test_real_programs_refuse_half_a_rar(real_program, tmp_path):
    archive = tmp_path / "half.rar"
    write_rar(archive, {"a.avi": bytes(range(256)) * 300})
    archive.write_bytes(archive.read_bytes()[:40000])
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=rf"half.rar cannot be unpacked: {real_program} says: .+"):
        unpack(archive, tmp_path / "out")


def test_a_7zip_without_rar_does_not_count(tmp_path, monkeypatch):
    program = tmp_path / "7zz"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for formats, found in ((" 0 Rar r C rar r00", True), (" 0 7z z C 7z", False)):
        program.write_text(f'#!/bin/sh\necho "{formats}"\n')
        program.chmod(stat.S_IRWXU)
        only(monkeypatch, "7zz")
        if found:
            assert find_unrar() == "7zz"
        else:
            with pytest.raises(UserError, match="needs one of the programs"):
                find_unrar()


def test_without_a_program_it_says_which_to_install_first(ucf101, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(UserError, match=r"needs one of the programs unar, .*apt install unar"):
        fetch_dataset(ucf101, str(tmp_path / "ucf101"), keep_archives=False)
    assert not Handler.requested


def test_the_published_addresses_are_https():
    for dataset in DATASETS.values():
        archives = [url for url, _ in dataset.archives]
        for url in (*dataset.files, *dataset.link_lists, *archives):
            assert url.startswith("https://")
    assert dataset_download.DATASETS.keys() == {"ucf101", "kinetics400"}
