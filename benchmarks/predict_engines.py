"""Compares the speed of prediction with PyTorch eager on the same network and clip.

    python -m tsm_jax.export --weights X --output inference/TSM
    python benchmarks/predict_engines.py --model inference/TSM [--channels_last]

Requires torch in addition to the engines. PyTorch runs with the exported weights, an input that is
already normalised, inference mode and all cores. Its logits are compared before anything is timed.
Rounds alternate between all engines. For each engine, a line of JSON has the median, the fastest
round and the median ratio to PyTorch over the rounds, which is least affected by other load.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from safetensors.numpy import load_file
from torch_tsm import TorchTSM

from tsm_jax.deploy.artifact import read_artifact
from tsm_jax.deploy.engine import FILES, installed, open_engine
from tsm_jax.errors import UserError
from tsm_jax.models.network import MEAN, STD
from tsm_jax.weights.model_directory import read_model_directory


def torch_run(
    folder: str, video: np.ndarray, channels_last: bool
) -> tuple[Callable[[], object], np.ndarray]:
    """Returns a function that runs PyTorch eager on a clip, and its logits."""
    architecture = read_model_directory(folder).architecture
    expected = {"shift": "past_first", "shift_every": 1}
    eighth = architecture.shift_fraction == "1/8" or architecture.num_segments == 8
    if not eighth or any(getattr(architecture, key) != value for key, value in expected.items()):
        raise SystemExit(
            f"cannot compare {folder}: the PyTorch network only supports the shift past_first by"
            " 1/8 in every block"
        )
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    network = TorchTSM(
        tensors, backbone=architecture.backbone, segments=architecture.num_segments
    ).eval()
    normalised = (video.astype(np.float32) / 255 - MEAN) / STD
    tensor = torch.tensor(normalised.transpose(0, 1, 4, 2, 3).copy())
    if channels_last:  # layout of the images; torch.flatten keeps it
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore
        images = tensor.flatten(0, 1).to(memory_format=torch.channels_last)
        tensor = images.unflatten(0, tensor.shape[:2])

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return network(tensor)

    return run, run().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True, help="exported ResNet-50 or MobileNetV2")
    parser.add_argument(
        "--channels_last", action="store_true", help="use channels_last images in PyTorch"
    )
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    artifact = read_artifact(arguments.model)
    video = np.random.default_rng(0).integers(0, 256, (1, *artifact.clip_shape), np.uint8)
    eager, expected = torch_run(arguments.model, video, arguments.channels_last)
    runs: dict[str, Callable[[], object]] = {"torch eager float32": eager}
    differences = {"torch eager float32": 0.0}
    for (name, precision), file in FILES.items():
        if installed(name) and file in artifact.hashes:
            try:
                engine = open_engine(artifact, name, precision)
            except UserError as error:  # this processor does not support bfloat16
                print(json.dumps({"run": f"{name} {precision}", "error": str(error)}), flush=True)
                continue
            key = f"{name} {precision}"
            runs[key] = lambda engine=engine: engine.logits(video)
            logits = engine.logits(video)
            differences[key] = float(np.abs(logits - expected).max() / np.abs(expected).max())
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(arguments.rounds):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            times[key].append(time.perf_counter() - start)
    for key, measured in times.items():
        ratios = [a / b for a, b in zip(measured, times["torch eager float32"], strict=True)]
        line = {
            "run": key,
            "threads": torch.get_num_threads(),
            "median_ms": round(1000 * statistics.median(measured), 1),
            "fastest_ms": round(1000 * min(measured), 1),
            "median_ratio_to_torch": round(statistics.median(ratios), 3),
            "ratio_of_fastest": round(min(measured) / min(times["torch eager float32"]), 3),
            "logits_differ": float(f"{differences[key]:.1e}"),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
