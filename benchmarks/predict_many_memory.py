"""Measures the memory of `predict_many` over many clips that are generated on demand.

    python benchmarks/predict_many_memory.py --model output/quickstart --clips 10000

Prints the resident memory after every tenth of the clips, and its growth since the first tenth.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np

import tsm_jax


def resident_megabytes() -> float:
    """Returns the resident memory of this process in MiB (Linux only)."""
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = [line for line in file if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def clips(number: int, frames: int, size: int) -> Iterator[np.ndarray]:
    """Yields different clips, each in newly allocated memory."""
    rng = np.random.default_rng(0)
    for _ in range(number):
        yield rng.integers(0, 256, (frames, size, size, 3), np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch_size", type=int)
    options = parser.parse_args()
    begin = time.perf_counter()
    recognizer = tsm_jax.load(options.model)
    print(f"load: {time.perf_counter() - begin:.2f} s")
    films = clips(options.clips, options.frames, options.size)
    answers = recognizer.predict_many(films, 1, batch_size=options.batch_size)
    every, seen, begin = max(1, options.clips // 10), [], time.perf_counter()
    for number, answer in enumerate(answers, start=1):
        assert answer.predictions
        if number % every == 0:
            seen.append(resident_megabytes())
            print(f"{number} clips: {seen[-1]:.0f} MB", flush=True)
    seconds = time.perf_counter() - begin
    growth = max(seen) - seen[0]
    print(f"{options.clips / seconds:.0f} clips per second; memory grew by {growth:.0f} MB")


if __name__ == "__main__":
    main()
