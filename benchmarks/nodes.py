"""Trains on several nodes, each of which is a network namespace of this machine.

    python benchmarks/nodes.py --work_dir /tmp/nodes

Requires Linux, root and iproute2. Every node has its own host name, address and cable to a bridge;
all share the file system. Prints a line of JSON for each of these:

- the same training on one node and on four;
- a training in which a node is lost: its process is killed or its cable is cut, for the first node
  and for another one. The line says how long the other processes ran on and what they printed;
- the continuation of that training on three nodes.

`difference` is the largest relative difference of a loss or gradient norm from the run on one node,
over all steps. The exit code is 1 if a difference is above 1e-3, if other processes ran on for 30 s
or longer, or if one printed more than a one-line error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tsm_jax.data import moving_shapes

ROOT = Path(__file__).parents[1]
NODES, BRIDGE, NETWORK, PORT = 4, "tsmbridge", "10.213.77", 8476
EPOCHS, LAST_STEP, LOST_AT = 8, 16, 6
LIMIT_SECONDS, TOLERANCE = 30.0, 1e-3


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def node(index: int) -> str:
    return f"tsmnode{index}"


@contextmanager
def network() -> Iterator[None]:
    """Creates the namespaces on a bridge, each with an address and a hosts file that lists all."""
    hosts = "127.0.0.1 localhost\n" + "".join(
        f"{NETWORK}.{index + 1} {node(index)}\n" for index in range(NODES)
    )
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["ip", "link", "del", BRIDGE])
        ip("link", "add", "name", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        for index in range(NODES):
            name, cable = node(index), f"tsmcable{index}"
            folder = Path("/etc/netns") / name  # `ip netns exec` mounts its files into /etc
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", name])
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(hosts)
            ip("netns", "add", name)
            ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", cable, "master", BRIDGE, "up")
            ip("-n", name, "address", "add", f"{NETWORK}.{index + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield


class Run:
    """A training run whose nodes write their output to files."""

    def __init__(self, work_dir: Path, name: str, nodes: int):
        self.workdir = work_dir / name
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(work_dir / "cache"),
        }
        self.processes, self.outputs = [], []
        for index in range(nodes):
            place = {
                "JAX_COORDINATOR_ADDRESS": f"{NETWORK}.1:{PORT}",
                "JAX_NUM_PROCESSES": str(nodes),
                "JAX_PROCESS_ID": str(index),
            }
            output = work_dir / f"{name}.{nodes}.{index}.txt"
            self.outputs.append(output)
            with open(output, "wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        self._command(work_dir, index),
                        env={**environment, **(place if nodes > 1 else {})},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def _command(self, work_dir: Path, index: int) -> list[str]:
        values = {
            "workdir": self.workdir,
            "data.render": "",
            "data.train_list": work_dir / "shapes" / "train.list",
            "data.val_list": work_dir / "shapes" / "val.list",
            "data.prefix": work_dir / "shapes",
            "model.width": 8,
            "model.num_segments": 4,
            "data.crop_size": 32,
            "data.short_side": 32,
            "batch_size": 12,  # divisible by one, three and four nodes
            "epochs": EPOCHS,
            "log_every": 1,
            "optimizer.schedule": "step",
            "optimizer.learning_rate": 0.001,  # a high one amplifies rounding errors
            "optimizer.warmup_epochs": 0.0,
        }
        # Each command `exec`s the next one, so the child process is the one that trains.
        enter = ["ip", "netns", "exec", node(index), "unshare", "--uts", "sh", "-c"]
        enter += [f'hostname {node(index)} && exec "$@"', "sh"]
        arguments = [f"--{key}={value}" for key, value in values.items()]
        return [*enter, sys.executable, "-m", "tsm_jax.train", "quickstart", *arguments]

    def wait(self) -> None:
        for process, output in zip(self.processes, self.outputs, strict=True):
            if process.wait():
                raise SystemExit(f"{output}: {output.read_text()}")

    def curve(self) -> dict[int, tuple[float, float]]:
        """Returns loss and gradient norm by step."""
        path = self.workdir / "metrics.jsonl"
        if not path.exists():
            return {}
        whole = [line for line in path.read_text().splitlines(keepends=True) if line[-1:] == "\n"]
        lines = [json.loads(line) for line in whole]
        return {x["step"]: (x["loss"], x["grad_norm"]) for x in lines if x["kind"] == "train"}

    def lose(self, index: int, how: str) -> tuple[float, int, list[str]]:
        """Removes a node after some steps.

        Returns:
            The seconds until the last other process ended, the last logged step, and what each of
            the other processes printed about errors.
        """
        while max(self.curve(), default=0) < LOST_AT:
            if any(process.poll() is not None for process in self.processes):
                raise SystemExit(f"a process ended too early: {self.outputs[0].read_text()}")
            time.sleep(0.02)
        if how == "killed":
            self.processes[index].kill()
        else:
            ip("link", "set", f"tsmcable{index}", "down")
        started = time.monotonic()
        others = [i for i in range(len(self.processes)) if i != index]
        for i in others:
            self.processes[i].wait()
        seconds = time.monotonic() - started
        self.processes[index].kill()
        self.processes[index].wait()
        ip("link", "set", f"tsmcable{index}", "up")
        return seconds, max(self.curve()), ["".join(self._errors(i)) for i in others]

    def _errors(self, index: int) -> Iterator[str]:
        for line in self.outputs[index].read_text().splitlines(keepends=True):
            if not line.startswith(("[Gloo]", "epoch", "END", "Already")):
                yield line


def difference(
    curve: dict[int, tuple[float, float]], other: dict[int, tuple[float, float]]
) -> float:
    assert list(curve) == list(other) == list(range(1, LAST_STEP + 1)), (curve, other)
    return max(
        abs(a - b) / abs(b)
        for step, values in curve.items()
        for a, b in zip(values, other[step], strict=True)
    )


def ends_in_one_line(text: str) -> bool:
    """Returns whether the last line is the only error and there is no stack trace."""
    trace = any(words in text for words in ("Traceback", "stack trace", "@     0x"))
    return text.splitlines()[-1:] == [x for x in text.splitlines() if "error: " in x] and not trace


def print_json(measure: str, **values: object) -> None:
    print(json.dumps({"measure": measure, **values}), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work_dir", type=Path, required=True, help="folder; it is emptied")
    work_dir = parser.parse_args(arguments).work_dir.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # to clean up the network
    shutil.rmtree(work_dir, ignore_errors=True)
    moving_shapes.render(work_dir / "shapes", train_videos=24, val_videos=12, seed=0)
    good = True
    with network():
        alone = Run(work_dir, "alone", 1)
        alone.wait()
        together = Run(work_dir, "together", NODES)
        together.wait()
        apart = difference(together.curve(), alone.curve())
        print_json("four nodes against one", steps=LAST_STEP, difference=apart)
        good &= apart < TOLERANCE
        for how, index in (("killed", 0), ("killed", 2), ("cut off", 0), ("cut off", 2)):
            name = f"{how} {index}".replace(" ", "_")
            seconds, step, errors = Run(work_dir, name, NODES).lose(index, how)
            print_json(
                f"node {index} {how}", others_ended_after_s=round(seconds, 1), printed=errors
            )
            good &= seconds < LIMIT_SECONDS and all(map(ends_in_one_line, errors))
            rest = Run(work_dir, name, NODES - 1)
            rest.wait()
            apart = difference(rest.curve(), alone.curve())
            print_json("continued on three", logged_before=step, steps=LAST_STEP, difference=apart)
            good &= apart < TOLERANCE
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
