"""Data sets from a server on this machine: told, fetched, unpacked, continued."""

from __future__ import annotations

import functools
import io
import os
import shutil
import stat
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tsm_jax import dataset_download
from tsm_jax.data.prepare.entries import find_videos
from tsm_jax.dataset_download import DATASETS, DataSet, fetch_dataset
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
    """The folder that the server shows, and its address."""
    folder = tmp_path / "published"
    folder.mkdir()
    Handler.requested.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
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
    assert "about 0.0 GB to download" in first and "are free" in first


def test_what_is_unpacked_is_not_fetched_again(kinetics, tmp_path):
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


def test_too_little_space_is_told_before_anything_is_fetched(kinetics, tmp_path):
    huge = replace(kinetics, unpacked_bytes=10**18)
    with pytest.raises(UserError, match=r"it takes 1000000000\.0 GB"):
        fetch_dataset(huge, str(tmp_path / "k400"), keep_archives=False)
    assert not Handler.requested


@pytest.fixture
def ucf101(published) -> DataSet:
    folder, url = published
    with zipfile.ZipFile(folder / "splits.zip", "w") as zipped:
        zipped.writestr("ucfTrainTestlist/classInd.txt", "1 Archery\n")
    write_tar(folder / "UCF101.rar", ["UCF-101/Archery/v_Archery_g01_c01.avi"])
    archives = [(f"{url}/splits.zip", "ucfTrainTestlist"), (f"{url}/UCF101.rar", "videos")]
    return DataSet("ucf101", 1000, 1000, archives=archives)


def test_a_rar_goes_to_an_installed_program(ucf101, tmp_path, monkeypatch):
    """`unrar` here is a script that unpacks a tar, as the arguments of the real one say."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "unrar").write_text('#!/bin/sh\ntar -xzf "$4" -C "$5"\n')
    os.chmod(programs / "unrar", stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    output = tmp_path / "ucf101"
    fetch_dataset(ucf101, str(output), keep_archives=False)
    assert find_videos(output / "videos") == ["Archery/v_Archery_g01_c01.avi"]
    assert (output / "ucfTrainTestlist" / "classInd.txt").exists()
    assert {p.name for p in output.iterdir()} == {"videos", "ucfTrainTestlist", "archives"}


def test_without_a_program_it_says_which_to_install_first(ucf101, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(UserError, match=r"needs one of the programs unrar, .*apt install unrar"):
        fetch_dataset(ucf101, str(tmp_path / "ucf101"), keep_archives=False)
    assert not Handler.requested


def test_the_published_addresses_are_https():
    for dataset in DATASETS.values():
        archives = [url for url, _ in dataset.archives]
        for url in (*dataset.files, *dataset.link_lists, *archives):
            assert url.startswith("https://")
    assert dataset_download.DATASETS.keys() == {"ucf101", "kinetics400"}
