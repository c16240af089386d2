"""Compares `prepare pack` and `predict` with and without a Ray cluster of three local nodes.

    python benchmarks/ray_cluster.py same --videos data/ucf10/videos --model output/TSM
    python benchmarks/ray_cluster.py cost --videos data/ucf10/videos --model output/TSM --clips 400
    python benchmarks/ray_cluster.py memory

`same` creates `--clips` links to the smallest videos and runs both commands three times: without
Ray, on three nodes, and on three nodes while a node is killed with SIGKILL and replaced at
`--kills` random moments. It prints a hash of all output bytes for each run. `cost` runs the
commands alternately without and with Ray, `--pairs` times. `memory` passes 2,000 and 200,000
entries to a decoder that does nothing. The cluster is started before the time is measured.

Times are wall-clock seconds and, where a group of processes can be measured (cgroup v1, as root),
CPU seconds including all processes of Ray.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

from tsm_jax.data.lists import VIDEO_SUFFIXES

GROUPS = Path("/sys/fs/cgroup/cpuacct")
ROOT = Path(__file__).parents[1]
PACKING = ("--frames_per_clip", "8", "--short_side", "112", "--clips_per_shard", "100")


def with_retries(start):
    """Retries, because Ray gives a node 30 s to start, which is too short on a busy machine."""
    for _ in range(5):
        try:
            return start()
        except Exception as error:  # Ray raises nothing more specific
            print(f"  retrying: {error}", flush=True)
    return start()


class Nodes:
    """A cluster of three nodes with one core each."""

    def __init__(self):
        from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

        self._size: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 200 << 20}
        head = {**self._size, "include_dashboard": False}
        self.cluster = with_retries(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.others = [self._add() for _ in range(2)]

    def _add(self):
        return with_retries(lambda: self.cluster.add_node(**self._size))

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def kill_one(self, rng: random.Random) -> None:
        node = self.others.pop(rng.randrange(len(self.others)))
        self.cluster.remove_node(node, allow_graceful=False)
        self.others.append(self._add())


@contextmanager
def nodes():
    cluster = Nodes()
    try:
        yield cluster
    finally:
        cluster.cluster.shutdown()


def processor_seconds(group: str) -> float | None:
    try:
        return int((GROUPS / group / "cpuacct.usage").read_text()) / 1e9
    except OSError:
        return None


def enter(group: str) -> None:
    """Adds this process, and all that it starts from now on, to a group."""
    try:
        (GROUPS / group).mkdir(exist_ok=True)
        (GROUPS / group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        pass


class Bench:
    """Runs the commands without Ray or on a cluster."""

    def __init__(self, options: argparse.Namespace, work: Path):
        self.work, self.model = work, options.model
        root = Path(options.videos).resolve()
        found = [p for p in root.rglob("*") if p.suffix in VIDEO_SUFFIXES and p.is_file()]
        found = sorted(found, key=lambda path: (path.stat().st_size, str(path)))[: options.sources]
        (work / "videos").mkdir()
        names = [f"{i:05}_{found[i % len(found)].name}" for i in range(options.clips)]
        for i, name in enumerate(names):
            (work / "videos" / name).symlink_to(found[i % len(found)])
        (work / "all.list").write_text("".join(f"{n} {i % 10}\n" for i, n in enumerate(names)))

    def command(self, name: str, output: Path, ray: str | None) -> list[str]:
        videos = str(self.work / "videos")
        words = [sys.executable, "-m", "tsm_jax"]
        if name == "pack":
            words += [
                "prepare",
                "pack",
                "--source",
                "videos",
                "--list",
                str(self.work / "all.list"),
            ]
            words += ["--prefix", videos, *PACKING, *(() if ray else ("--processes", "3"))]
        else:
            words += ["predict", "--model", self.model, "--input", videos]
        return [*words, "--output", str(output), *(("--ray", ray) if ray else ())]

    def run(self, name: str, output: str, ray: str | None = None, beside=lambda process: None):
        """Returns wall-clock and CPU seconds of a command; calls `beside` while it runs."""
        group = "tsm-cluster" if ray else "tsm-one"
        enter(group)
        before, begin = processor_seconds(group), time.perf_counter()
        process = subprocess.Popen(
            self.command(name, self.work / output, ray),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        beside(process)
        _, errors = process.communicate()
        wall, after = time.perf_counter() - begin, processor_seconds(group)
        if process.returncode:  # for predict, some videos could not be read
            print(f"  exit code {process.returncode}: {errors.strip().splitlines()[-1]}")
        return wall, None if after is None or before is None else after - before

    def digest(self, output: str) -> str:
        path, found = self.work / output, hashlib.sha256()
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                found.update(bytes(file.relative_to(path)) + file.read_bytes())
        return found.hexdigest()[:16]


def shown(seconds: tuple[float, float | None]) -> str:
    wall, processor = seconds
    return f"{wall:.1f} s" + (f" ({processor:.1f} s of CPU)" if processor else "")


def same(bench: Bench, options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)
    for name in options.commands:
        print(f"{name}: load {os.getloadavg()[0]:.1f}", flush=True)
        three = (options.seconds, None)
        if "here" in options.runs:
            one = bench.run(name, f"{name}-one")
            print(f"  without Ray: {shown(one)}", bench.digest(f"{name}-one"), flush=True)
        enter("tsm-cluster")
        with nodes() as cluster:
            if "ray" in options.runs:
                three = bench.run(name, f"{name}-ray", cluster.address)
                print(f"  three nodes: {shown(three)}", bench.digest(f"{name}-ray"), flush=True)
            if "killed" not in options.runs:
                continue
            moments = sorted(rng.uniform(0.1, 0.9) * three[0] for _ in range(options.kills))

            def kill(process, moments=moments, cluster=cluster):
                begin, done = time.perf_counter(), 0
                for moment in moments:
                    time.sleep(max(0.0, moment - (time.perf_counter() - begin)))
                    if process.poll() is None:
                        cluster.kill_one(rng)
                        done += 1
                print(f"  killed {done} nodes, at {[round(m) for m in moments]} s", flush=True)

            killed = bench.run(name, f"{name}-killed", cluster.address, kill)
        print(f"  with kills: {shown(killed)}", bench.digest(f"{name}-killed"), flush=True)


def cost(bench: Bench, options: argparse.Namespace) -> None:
    enter("tsm-cluster")
    with nodes() as cluster:
        for pair in range(options.pairs):
            for name in options.commands:
                one = bench.run(name, f"{name}-one-{pair}")
                three = bench.run(name, f"{name}-ray-{pair}", cluster.address)
                ratios = [b / a for a, b in zip(one, three, strict=True) if a and b]
                print(
                    f"{name}: without Ray {shown(one)}, three nodes {shown(three)}; ratios"
                    f" {', '.join(f'{r:.2f}' for r in ratios)}; load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )


def memory(options: argparse.Namespace) -> None:
    """Measures the memory of a run; the label of an entry replaces the result of a decoder."""
    from predict_many_memory import resident_megabytes

    from tsm_jax.data.lists import ClipEntry
    from tsm_jax.data.prepare.jobs import run_jobs

    with nodes() as cluster:
        import ray  # pyright: ignore[reportMissingImports]

        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        for count in (2_000, options.entries):
            entries = [ClipEntry(f"/data/k400/train/{i:08}.mp4", i, None) for i in range(count)]
            before, most, begin = resident_megabytes(), 0.0, time.perf_counter()
            jobs = run_jobs(itemgetter(1), entries, ray=cluster.address, path_of=itemgetter(0))
            for number, (_, result) in enumerate(jobs):
                assert result == number
                if number % 1000 == 0:
                    most = max(most, resident_megabytes())
            seconds = time.perf_counter() - begin
            print(
                f"{count} entries: {before:.0f} MB with the list, at most {most:.0f} MB during"
                f" processing; {count / seconds:.0f} entries per second",
                flush=True,
            )
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["same", "cost", "memory"])
    parser.add_argument("--videos", help="folder of videos")
    parser.add_argument("--sources", type=int, default=20, help="number of smallest videos to use")
    parser.add_argument(
        "--runs", nargs="+", default=["here", "ray", "killed"], help="same: which runs to make"
    )
    parser.add_argument("--model", help="exported folder")
    parser.add_argument("--commands", nargs="+", default=["pack", "predict"])
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="same: assumed duration of a run if `killed` is run without `ray`",
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--entries", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = str(ROOT)
    if options.part == "memory":
        memory(options)
        return
    with tempfile.TemporaryDirectory(prefix="tsm-ray-cluster-") as folder:
        (same if options.part == "same" else cost)(Bench(options, Path(folder)), options)


if __name__ == "__main__":
    main()
