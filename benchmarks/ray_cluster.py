"""`prepare pack` and `predict` on a Ray cluster of three nodes on this machine, and without.

    python benchmarks/ray_cluster.py same --videos data/ucf10/videos --model output/TSM
    python benchmarks/ray_cluster.py cost --videos data/ucf10/videos --model output/TSM --clips 400
    python benchmarks/ray_cluster.py memory

`same` makes `--clips` links to the smallest videos, runs both commands once without Ray,
once on three nodes, and once more while a node is killed with SIGKILL at `--kills` random moments
(another one is added each time), and compares every byte. `cost` runs them in turns without and
with Ray, `--pairs` times. `memory` gives 2,000 and 200,000 entries to a decoder that does nothing.
The cluster stands before the clock starts.

Seconds are on the wall and, where the group of processes can be counted (cgroup v1, as root),
those of the processors, all of Ray's processes included.
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


def patiently(start):
    """Ray gives a node 30 s to start, which a loaded machine may not be able to."""
    for _ in range(5):
        try:
            return start()
        except Exception as error:  # it raises nothing more special
            print(f"  again: {error}", flush=True)
    return start()


class Nodes:
    """Three nodes with a core each."""

    def __init__(self):
        from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

        self._size: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 200 << 20}
        head = {**self._size, "include_dashboard": False}
        self.cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.others = [self._add() for _ in range(2)]

    def _add(self):
        return patiently(lambda: self.cluster.add_node(**self._size))

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
    """Counts this process and those that it starts from now on."""
    try:
        (GROUPS / group).mkdir(exist_ok=True)
        (GROUPS / group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        pass


class Bench:
    """The same commands, here and there."""

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
        """Wall and processor seconds of a command; `beside` is called while it runs."""
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
        if process.returncode:  # of predict, how many videos could not be read
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
    return f"{wall:.1f} s" + (f" ({processor:.1f} s of processors)" if processor else "")


def same(bench: Bench, options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)
    for name in options.commands:
        print(f"{name}: load {os.getloadavg()[0]:.1f}", flush=True)
        three = (options.seconds, None)
        if "here" in options.runs:
            one = bench.run(name, f"{name}-one")
            print(f"  here: {shown(one)}", bench.digest(f"{name}-one"), flush=True)
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
                print(f"  {done} nodes killed, at {[round(m) for m in moments]} s", flush=True)

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
                    f"{name}: here {shown(one)}, three nodes {shown(three)}; ratios"
                    f" {', '.join(f'{r:.2f}' for r in ratios)}; load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )


def memory(options: argparse.Namespace) -> None:
    """The label of an entry stands for what a decoder would have made of it."""
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
                f"{count} entries: {before:.0f} MB with the list, at most {most:.0f} MB while they"
                f" were worked on; {count / seconds:.0f} entries a second",
                flush=True,
            )
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["same", "cost", "memory"])
    parser.add_argument("--videos", help="a folder of videos")
    parser.add_argument("--sources", type=int, default=20, help="so many of the smallest")
    parser.add_argument("--runs", nargs="+", default=["here", "ray", "killed"], help="of same")
    parser.add_argument("--model", help="an exported folder")
    parser.add_argument("--commands", nargs="+", default=["pack", "predict"])
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of kills, without a run before"
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
