"""Measures time and memory of reading and converting a `.pdparams` of the size of TSM-ResNet-50.

    python benchmarks/pdparams_speed.py

Writes a file of 97 MB, reads it in separate processes (from the page cache) and prints one line of
JSON with the best times. The memory of reading is the growth of the peak after the imports; that of
the convert command is the peak of the whole process. Requires Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tsm_jax.weights.paddle_networks import paddle_tensors
from tsm_jax.weights.pickle_writers import write_paddle

CHILD = """
import json, sys, time
from tsm_jax.weights.paddle_names import from_paddle
from tsm_jax.weights.paddle_pickle import read_paddle

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

before, start = peak(), time.perf_counter()
content = read_paddle(sys.argv[1])
read, after_reading = time.perf_counter() - start, peak()
weights, architecture = from_paddle(content)
mapped = time.perf_counter() - start - read
print(json.dumps([read, mapped, after_reading - before, peak() - before]))
"""


def resnet_50() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        tensor.paddle: generator.uniform(0.1, 1, tensor.shape).astype(np.float32)
        for tensor in paddle_tensors("resnet50", 64, 400)
    }


def measure(path: Path, repeats: int) -> dict[str, float]:
    """Measures reading: the best times in seconds and the largest growth of memory in MB."""
    command = [sys.executable, "-c", CHILD, str(path)]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(repeats)
    ]
    read, mapped, memory_read, memory_total = zip(*runs, strict=True)
    return {
        "read_s": round(min(read), 3),
        "map_s": round(min(mapped), 3),
        "read_peak_mb": round(max(memory_read) / 1e6, 1),
        "read_and_map_peak_mb": round(max(memory_total) / 1e6, 1),
    }


def measure_command(path: Path, repeats: int) -> dict[str, float]:
    """Measures `python -m tsm_jax.convert`: the best time in seconds and the largest peak in MB."""
    times, peaks = [], []
    for repeat in range(repeats):
        output = path.with_name(f"converted{repeat}")
        command = [sys.executable, "-m", "tsm_jax.convert", "--input", path, "--output", output]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        times.append(time.perf_counter() - start)
        assert os.waitstatus_to_exitcode(status) == 0, "convert failed"
        peaks.append(usage.ru_maxrss * 1024)
    return {"convert_s": round(min(times), 3), "convert_peak_mb": round(max(peaks) / 1e6, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    tensors = resnet_50()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "protocol4.pdparams"
        start = time.perf_counter()
        write_paddle(path, tensors)
        report: dict[str, object] = {
            "file_mb": round(path.stat().st_size / 1e6, 1),
            "write_s": round(time.perf_counter() - start, 3),
            "protocol_4": measure(path, arguments.repeats),
        }
        report["command"] = measure_command(path, arguments.repeats)
        older = Path(folder) / "protocol2.pdparams"
        older.write_bytes(pickle.dumps(tensors, 2))
        report["protocol_2"] = measure(older, arguments.repeats)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
