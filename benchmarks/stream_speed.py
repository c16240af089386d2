"""Compares the time of a stream's frame with that of a clip of the same network; measures memory.

python benchmarks/stream_speed.py --backbone mobilenet_v2
python benchmarks/stream_speed.py --backbone mobilenet_v2 --memory_frames 100000 --size 64

Weights are random, because time and memory do not depend on them. Frames and clips alternate, so
other load on the machine affects both.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time

import numpy as np

from tsm_jax.data.protocols import Preprocessing
from tsm_jax.deploy.artifact import STREAM, read_artifact
from tsm_jax.deploy.engine import ENGINES, installed, open_engine, open_stream_engine
from tsm_jax.deploy.stream import Stream
from tsm_jax.exporting.stream_writer import export_stream
from tsm_jax.exporting.writer import export_model
from tsm_jax.models.architecture import Architecture
from tsm_jax.models.network import build_network
from tsm_jax.weights.model_directory import Model

SEGMENTS, CLASSES = 8, 400


def random_model(backbone: str, size: int) -> Model:
    architecture = Architecture(backbone, CLASSES, SEGMENTS, shift="past_only")
    network = build_network(architecture, "float32")
    params, stats = network.init(0)
    labels = [f"class {k}" for k in range(CLASSES)]
    preprocessing = Preprocessing(size, size, frame_rate=8.0)
    return Model(architecture, preprocessing, labels, {**params, **stats})


def seconds(call, *arguments) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def compare(folder: str, engine: str, size: int, rounds: int) -> None:
    """Prints the median times of a frame and a clip in an engine."""
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (1, SEGMENTS, size, size, 3), np.uint8)
    clips = open_engine(read_artifact(f"{folder}/clips"), engine)
    frames = open_stream_engine(read_artifact(f"{folder}/stream", STREAM), engine)
    state = frames.start
    times: dict[str, list[float]] = {"frame": [], "clip": []}
    for _ in range(rounds):
        times["clip"].append(seconds(clips.logits, clip))
        for frame in clip[0]:
            start = time.perf_counter()
            _, state = frames.step(frame[None], state)
            times["frame"].append(time.perf_counter() - start)
    frame, whole = (1000 * float(np.median(times[kind])) for kind in ("frame", "clip"))
    print(f"{engine:12}  frame {frame:7.2f} ms  clip {whole:7.2f} ms  ratio {frame / whole:.3f}")


def memory(folder: str, engine: str, count: int) -> None:
    """Prints how the peak memory of the process grows over many frames."""
    stream = Stream.load(f"{folder}/stream", engine=engine)
    smoother = stream.smoother()
    frames = np.random.default_rng(0).integers(0, 256, (16, 120, 160, 3), np.uint8)
    warm = max(count // 10, 1)
    before = 0
    for i in range(count):
        smoother.update(stream.push(frames[i % len(frames)]))
        if i + 1 == warm:
            before = _peak()
    print(
        f"{engine:12}  peak memory {before / 1024:.1f} MiB after {warm} frames,"
        f" {_peak() / 1024:.1f} MiB after {count}"
    )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--engines", nargs="+", default=list(filter(installed, ENGINES)))
    parser.add_argument(
        "--memory_frames", type=int, default=0, help="measure memory over this many frames"
    )
    options = parser.parse_args()
    model = random_model(options.backbone, options.size)
    with tempfile.TemporaryDirectory() as folder:
        export_stream(model, f"{folder}/stream")
        if options.memory_frames:
            for engine in options.engines:
                memory(folder, engine, options.memory_frames)
            return
        export_model(model, f"{folder}/clips")
        for engine in options.engines:
            compare(folder, engine, options.size, options.rounds)


if __name__ == "__main__":
    main()
