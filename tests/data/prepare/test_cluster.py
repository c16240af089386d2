"""A cluster gives the results of one machine, whatever is lost; nodes that differ are refused.

These tests use tests/fake_ray.py instead of Ray; tests/data/prepare/test_ray.py starts the real
one.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading

import numpy as np
import pytest

from tsm_jax import host, prepare
from tsm_jax.data.prepare import cluster, cluster_node, extract
from tsm_jax.data.prepare.cluster import run_on_ray
from tsm_jax.data.prepare.jobs import JobFailure, run_jobs
from tsm_jax.errors import StopJobsError, UserError


def run(items, function=str, **more):
    return list(run_on_ray(function, items, "10.0.0.1:6379", path_of=str, **more))


def test_results_are_in_order_and_few_tasks_run_at_once(fake_ray, monkeypatch):
    monkeypatch.setattr(cluster, "_MOST_AHEAD", 40)
    fake_ray.work, fake_ray.cores = fake_ray.at_once, 10
    taken = 0

    def items():
        nonlocal taken
        for taken in range(1, 501):
            yield taken - 1

    results = []
    for number, (item, result) in enumerate(
        run_jobs(str, items(), ray="10.0.0.1:6379", path_of=str)
    ):
        results.append((item, result))
        assert taken - number <= 40
    assert results == [(i, str(i)) for i in range(500)]
    assert fake_ray.most == 20
    assert fake_ray.items != sorted(fake_ray.items)


def test_large_results_do_not_pile_up(fake_ray, monkeypatch):
    monkeypatch.setattr(cluster, "_MOST_BYTES", 10_000)
    fake_ray.work = fake_ray.at_once
    # The first one comes last while there are others.
    fake_ray.wait = lambda references, timeout: (references[-1:], [])
    taken = []
    items = (taken.append(i) or i for i in range(300))
    jobs = run_on_ray(bytes, (1000 for _ in items), "a:1", path_of=str)
    assert len(next(jobs)[1]) == 1000
    assert len(taken) < 30
    assert len(list(jobs)) == 299


def test_processes_share_the_memory_of_a_gpu(fake_ray, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    assert run(["XLA_PYTHON_CLIENT_PREALLOCATE"], os.getenv)[0][1] == "false"


def test_lost_items_are_repeated_and_no_others(fake_ray):
    fake_ray.work = fake_ray.at_once
    fake_ray.lose = lambda item: fake_ray.rng.random() < 0.4
    assert run(range(200)) == [(i, str(i)) for i in range(200)]
    assert len(fake_ray.tasks) > 250


def test_short_items_share_a_task_and_lost_items_are_repeated_alone(fake_ray):
    fake_ray.work, fake_ray.seconds = fake_ray.at_once, 0.02
    lost = []
    fake_ray.lose = lambda item: item == 250 and len(lost) < 3 and not lost.append(item)
    assert run(range(500)) == [(i, str(i)) for i in range(500)]
    assert max(map(len, fake_ray.tasks)) == 12  # of 0.25 s
    (first,) = (task for task in fake_ray.tasks if 250 in task and len(task) > 1)
    assert sorted(t for t in fake_ray.tasks if t[0] in first and len(t) == 1) == sorted(
        [[item] for item in first] + 2 * [[250]]
    )


def test_an_error_in_a_task_comes_after_the_results_before_it(fake_ray):
    fake_ray.work, fake_ray.seconds = fake_ray.at_once, 0.001
    items = [*"abcdefghijklmnopqrstuvw", "fails", *"xyz"]
    jobs = run_on_ray(job, items, "a:1", path_of=str)
    for item in items[:23]:
        assert next(jobs)[0] == item
    with pytest.raises(UserError, match="node 10.0.0.7: the disk is full"):
        next(jobs)
    assert any(len(task) > 1 and "fails" in task for task in fake_ray.tasks)


def test_an_item_that_takes_down_every_worker_ends_the_run(fake_ray):
    fake_ray.work = fake_ray.at_once
    fake_ray.lose = lambda item: item == 3
    jobs = run_on_ray(str, range(100), "a:1", path_of=str)
    with pytest.raises(UserError, match=r"^3: 10 workers were lost .* command again to continue"):
        list(jobs)
    assert fake_ray._waiting == {}


@pytest.mark.parametrize("code, attempts", [(-11, 1), (-9, 3)])
def test_a_killed_process_may_have_been_on_a_dying_node(fake_ray, code, attempts):
    failure = JobFailure(f"the decoder crashed (exit code {code})", "crashed", code)
    fake_ray.work = lambda order, items: [fake_ray.done(failure, path) for _, path in items]
    assert run(["a"]) == [("a", failure)]
    assert fake_ray.items == ["a"] * attempts


def test_a_node_that_sees_other_files_ends_the_run(fake_ray, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"12345")
    path = str(tmp_path / "a.mp4")
    missing = pickle.dumps(JobFailure("no such file"))

    def done(size):
        return [cluster_node.Done("10.0.0.7", result=missing, size=size)]

    for size, seen in ((None, "nothing"), (4, "4 bytes"), (-1, "a folder")):
        fake_ray.work = lambda *_, size=size: done(size)
        message = rf"node 10.0.0.7 sees {seen} at {path}, but this machine sees 5 bytes: all mach"
        with pytest.raises(UserError, match=message):
            run([path])
    fake_ray.work = lambda *_: done(None)
    assert run([f"{path}.gone"])[0][1] == JobFailure("no such file")


def job(item):
    match item:
        case "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "eats":
            return bytes(3 << 30)
        case "fails":
            raise StopJobsError("the disk is full")
        case "defect":
            raise KeyError("ours")
        case "cores":
            return host.usable_cores()
    return os.getpid()


def test_a_bad_file_affects_only_itself(fake_ray):
    """Uses real processes."""
    fake_ray.memory = 4 << 30  # for two cores
    items = ["a", "crashes", "b", "eats", "c", "cores"]
    results = dict(run(items, job))
    assert results["crashes"] == JobFailure("the decoder crashed (exit code -11)", "crashed", -11)
    assert results["eats"].reason.startswith("it needs more memory than 2048 MB")
    assert all(isinstance(results[name], int) for name in "abc")
    assert results["cores"] == 1
    with pytest.raises(UserError, match="node 10.0.0.7: the disk is full"):
        run(["fails"], job)
    with pytest.raises(RuntimeError, match="KeyError: 'ours'"):
        run(["defect"], job)


def test_nodes_with_another_decoder_or_other_code_are_refused(fake_ray, monkeypatch):
    real = cluster_node.versions

    def elsewhere(packages):
        return {**real(packages), changed: "17.0"}

    fake_ray.work = lambda *arguments: (
        monkeypatch.setattr(cluster_node, "versions", elsewhere),
        cluster_node.work(*arguments),
        monkeypatch.setattr(cluster_node, "versions", real),
    )[1]
    for changed in ("av", "tsm_jax"):
        with pytest.raises(UserError, match=f"node 10.0.0.7: {changed}: 17.0 here, but .* on the"):
            run(["a"])


def test_packages_missing_on_a_node_are_reported(fake_ray):
    def fails(*_):
        raise fake_ray.exceptions.RayTaskError(ModuleNotFoundError("No module named 'tsm_jax'"))

    fake_ray.work = fails
    with pytest.raises(UserError, match="lacks packages .*No module named 'tsm_jax'.*same"):
        run(["a"])


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'tsm-jax\[ray\]'"):
        run(["a"])


def test_a_wrong_address_is_one_line(fake_ray, monkeypatch):
    monkeypatch.setattr(fake_ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match="there is no cluster, something other than Ray"):
            next(run_on_ray(str, ["a"], f"127.0.0.1:{port}", path_of=str))
        thread.join()
    wrong = {
        f"127.0.0.1:{port}": "nothing answers (Connection refused): start one with ray start",
        "somewhere": "expected local, auto or HOST:PORT, such as 10.0.0.1:6379",
        "ray://10.0.0.1:10001": "run the command on a node of the cluster",
    }
    for address, message in wrong.items():
        with pytest.raises(UserError) as raised:
            next(run_on_ray(str, ["a"], address, path_of=str))
        assert message in str(raised.value) and address in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match="--processes cannot be used with --ray auto"):
        next(run_on_ray(str, ["a"], "auto", path_of=str, processes=2))


def test_gives_up_waiting_for_a_cluster_without_cores(fake_ray, monkeypatch, capsys):
    clock = iter(np.arange(0, 1e6, 3.0).tolist())
    monkeypatch.setattr(cluster.time, "monotonic", lambda: next(clock))
    fake_ray.cores = 0
    fake_ray.wait = lambda references, timeout: ([], references)
    with pytest.raises(UserError, match="has had no node with a core for 600 s"):
        run(["a"])
    assert capsys.readouterr().err.count("waiting for a node") == 1


@pytest.mark.parametrize("command", ["check", "frames", "pack"])
def test_commands_write_the_same_on_a_cluster(fake_ray, videos, video_list, tmp_path, command):
    fake_ray.work = fake_ray.at_once
    fake_ray.lose = lambda item: fake_ray.rng.random() < 0.3
    outputs = []
    for where in ([], ["--ray", "10.0.0.1:6379"]):
        output = tmp_path / f"out{len(outputs)}"
        words = [command, "--list", video_list, "--prefix", videos, *where]
        words += [] if command == "frames" else ["--source", "videos"]
        if command == "check":
            words += ["--report", output / "report", "--write_clean", output / "clean"]
        else:
            words += ["--output", output]
        words += ["--clips_per_shard", 3] if command == "pack" else []
        prepare.main([str(word) for word in words])
        files = sorted(path for path in output.rglob("*") if path.is_file())
        outputs.append({str(path.relative_to(output)): path.read_bytes() for path in files})
    assert outputs[0] == outputs[1]
    assert any(b"clip9" in content for content in outputs[0].values())
    assert len(fake_ray.items) >= 7


def test_frames_go_to_a_disk_that_all_share(videos, tmp_path):
    job = str(videos / "a" / "clip0.mp4"), str(tmp_path / "frames" / "clip0")
    write = {"short_side": 24, "quality": 90}
    with pytest.raises(StopJobsError, match="must be on a disk that all nodes share"):
        extract._extract_video(job, partial_root=str(tmp_path / "not here"), **write)
    with pytest.raises(UserError, match="use prepare pack to write to a bucket"):
        extract.extract([], [], "gs://bucket/frames")


def test_a_folder_that_another_node_finished_is_kept(videos, tmp_path, monkeypatch):
    """A node that was believed lost may still be working."""
    job = str(videos / "a" / "clip0.mp4"), str(tmp_path / "frames" / "clip0")
    write = {"partial_root": str(tmp_path), "short_side": 24, "quality": 90}
    rename = os.rename

    def overtaken(source, target):
        monkeypatch.setattr(os, "rename", rename)
        assert extract._extract_video(job, **write) == 23
        rename(source, target)

    monkeypatch.setattr(os, "rename", overtaken)
    assert extract._extract_video(job, **write) == 23
    assert len(list((tmp_path / "frames" / "clip0").iterdir())) == 23
    assert {path.name for path in tmp_path.iterdir()} == {"frames"}
