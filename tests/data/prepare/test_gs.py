"""Packing to `gs://` and reading from there, with a bucket on this machine.

Python code reaches it as a file system of fsspec, and ArrayRecord's own Google Cloud Storage client
as an emulator's address.
"""

from __future__ import annotations

import importlib
import re
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from tsm_jax import prepare
from tsm_jax.data.lists import ClipEntry, exists
from tsm_jax.data.packed import open_packed
from tsm_jax.data.prepare.entries import read_entries
from tsm_jax.data.prepare.pack import RecordOptions, make_record
from tsm_jax.data.sources import VideoSource
from tsm_jax.deploy.videos import find_videos, local_file
from tsm_jax.errors import StopJobsError, UnreadableClipError, UserError

ADDRESS = "gs://bucket/some/packed"


class Bucket(MemoryFileSystem):
    protocol = ("gs", "gcs")
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + re.sub(r"^g(c)?s://", "", str(path)).strip("/")


class Emulator(BaseHTTPRequestHandler):
    """Serves objects, whole or in ranges, and their metadata."""

    def do_GET(self):
        path, _, query = self.path.partition("?")
        parts = urllib.parse.unquote(path).split("/o/", 1)
        content = Bucket.store[f"/{parts[0].rsplit('/', 1)[1]}/{parts[1]}"].getvalue()
        size, status, wanted = len(content), 200, self.headers.get("range")
        if "alt=media" not in query:
            content = b'{"kind": "storage#object", "size": "%d"}' % size
        elif wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, size - int(last))
            stop = int(last) + 1 if first and last else size
            content, status = content[start:stop], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{size}")
        self.send_header("x-goog-generation", "1")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def nothing_opened():
    """Prevents reuse of file systems that other tests have opened."""
    cached = backend._FileSystemSpecBackend._get_filesystem
    cached.cache_clear()
    yield
    cached.cache_clear()


@pytest.fixture
def bucket(nothing_opened, monkeypatch):
    Bucket.store.clear()
    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, "gcs", Bucket)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Emulator)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)
    yield
    server.shutdown()
    server.server_close()


def pack(videos, video_list, output):
    common = ["--source", "videos", "--list", video_list, "--prefix", videos]
    words = ["pack", *common, "--output", output, "--clips_per_shard", 3, "--processes", 1]
    prepare.main([str(word) for word in words])


def test_packs_to_a_bucket_and_reads_from_it(bucket, videos, video_list, tmp_path):
    pack(videos, video_list, tmp_path / "here")
    pack(videos, video_list, ADDRESS)
    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert {name.rsplit("/", 1)[1] for name in Bucket.store} == names
    for name in names:
        there = Bucket.store[f"/bucket/some/packed/{name}"].getvalue()
        assert there == (tmp_path / "here" / name).read_bytes()
    here, there = (open_packed(str(d), num_classes=2) for d in (tmp_path / "here", ADDRESS))
    assert len(here) == len(there) == 6
    for clip in range(6):
        assert there.label(clip) == here.label(clip)
        pair = (source.read(clip, np.arange) for source in (here, there))
        np.testing.assert_array_equal(*map(np.array, pair))


def test_videos_in_a_bucket_are_those_of_a_disk(bucket, videos):
    name = "b b/clip0.mp4"
    fsspec.filesystem("gcs").pipe(f"gs://bucket/{name}", (videos / name).read_bytes())
    entries = [ClipEntry(f"{root}/{name}", 1, None) for root in (videos, "gs://bucket")]
    here, there = (VideoSource([entry]).read(0, np.arange) for entry in entries)
    np.testing.assert_array_equal(here, there)
    options = RecordOptions("videos", "", 4, 32, 90)
    records = {make_record(("b", entry), options).data for entry in entries}
    assert len(records) == 1
    with local_file(entries[1].path) as copy:
        assert Path(copy).read_bytes() == (videos / name).read_bytes()
    assert not Path(copy).exists()
    gone = ClipEntry("gs://bucket/gone.mp4", 1, None)
    with pytest.raises(UnreadableClipError, match=r"video gs://bucket/gone.mp4: there is no such"):
        VideoSource([gone]).read(0, np.arange)
    fsspec.filesystem("gcs").pipe("gs://bucket/text.mp4", b"no video")
    with pytest.raises(UnreadableClipError, match=r"^cannot decode gs://bucket/text.mp4: Invalid"):
        VideoSource([gone._replace(path="gs://bucket/text.mp4")]).read(0, np.arange)
    assert [exists(entry.path) for entry in (*entries, gone)] == [True, True, False]


def test_frames_are_not_read_from_a_bucket(tmp_path):
    (tmp_path / "a.list").write_text("clip0 20 1\n")
    with pytest.raises(
        UserError, match="gs://bucket/clip0: folders of frames are read from a disk"
    ):
        read_entries("frames", str(tmp_path / "a.list"), prefix="gs://bucket", suffix="")


def test_a_list_of_addresses_may_have_labels(tmp_path):
    (tmp_path / "a.txt").write_text("gs://bucket/a b.mp4 3\ns3://bucket/c.mp4\n")
    found = find_videos([str(tmp_path / "a.txt")])
    assert found == ["gs://bucket/a b.mp4", "s3://bucket/c.mp4"]


def test_a_bucket_out_of_reach_ends_the_work_instead_of_losing_clips(nothing_opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StopJobsError, match=r"cannot be reached: .*for s3://, pip install s3fs"):
        VideoSource([ClipEntry("gs://bucket/a.mp4", 1, None)]).read(0, np.arange)


def test_says_what_to_install(nothing_opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"pip install gcsfs"):
        open_packed("gs://bucket/other", num_classes=2)
