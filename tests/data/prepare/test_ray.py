"""Tests with the real Ray: three nodes on this machine, one of which is killed while it works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tsm_jax.data.prepare.jobs import JobFailure, run_jobs

ROOT = Path(__file__).parents[3]
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'tsm-jax[ray]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        head = {**NODE, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.others = [cluster.add_node(**NODE) for _ in range(2)]
        yield cluster
        cluster.shutdown()


@pytest.fixture(scope="module")
def many(videos, tmp_path_factory):
    """A folder of 60 links to six videos and a broken one, and the list of the links."""
    root = tmp_path_factory.mktemp("many")
    found = sorted(videos.rglob("*.mp4"))
    names = [f"{i:02}_{found[i % 7].parent.name[0]}_{found[i % 7].name}" for i in range(60)]
    (root / "videos").mkdir()
    for i, name in enumerate(names):
        (root / "videos" / name).symlink_to(found[i % 7])
    (root / "all.list").write_text("".join(f"{name} {i % 2}\n" for i, name in enumerate(names)))
    return root


def pack(many, output, *more):
    words = ["prepare", "pack", "--source", "videos", "--list", many / "all.list"]
    words += ["--prefix", many / "videos", "--output", output, "--clips_per_shard", 7, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "tsm_jax", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_killed_node_neither_loses_nor_repeats_results(nodes, many, tmp_path):
    here = pack(many, tmp_path / "here").communicate()
    process = pack(many, tmp_path / "there", "--ray", nodes.address)
    while process.poll() is None and not list((tmp_path / "there").glob("*.array_record*")):
        time.sleep(0.01)
    nodes.remove_node(nodes.others.pop(), allow_graceful=False)
    there = process.communicate()
    assert there[0].replace("there", "here") == here[0]
    assert there[1] == here[1] == ""  # none of Ray's own messages
    assert process.returncode == 0
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_an_interrupted_run_continues(nodes, many, tmp_path):
    process = pack(many, tmp_path / "cut", "--ray", nodes.address)
    while process.poll() is None and not list((tmp_path / "cut").glob("*.array_record*")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("*.array_record*")}
    assert before and not (tmp_path / "cut" / "dataset_info.json").exists()
    assert pack(many, tmp_path / "cut", "--ray", nodes.address).wait() == 0
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    assert pack(many, tmp_path / "here").wait() == 0
    assert content(tmp_path / "cut") == content(tmp_path / "here")


def test_crashes_hangs_and_a_lack_of_memory_are_results(nodes):
    items = [signal.SIGSEGV, signal.SIGURG, signal.SIGABRT, signal.SIGKILL]
    crashed = [r for _, r in run_jobs(_raise, items, ray=nodes.address)]
    assert [r.exit_code for r in (crashed[0], *crashed[2:])] == [-11, -6, -9]
    hung = [r for _, r in run_jobs(time.sleep, [0, 600, 0], ray=nodes.address, seconds=2)]
    assert hung == [None, JobFailure("timed out after 2 s", "late"), None]
    large = [r for _, r in run_jobs(bytes, [1, 1 << 40, 2], ray=nodes.address)]
    assert large[::2] == [b"\0", b"\0\0"]
    assert "it needs more memory than" in large[1].reason


# From the standard library, so that the nodes can import it.
_raise = signal.raise_signal


def test_a_local_cluster_leaves_no_files(many, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'tsm-jax[ray]'")
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        process = pack(many, tmp_path / "local", "--ray", "local")
        assert process.communicate()[1] == ""
        assert os.listdir(folder) == []
    assert pack(many, tmp_path / "here").wait() == 0
    assert content(tmp_path / "local") == content(tmp_path / "here")
