"""Prediction against PyTorch eager: the same network, clip, threads and minute.

    python -m tsm_jax.export --weights X --output inference/TSM
    python benchmarks/predict_engines.py --model inference/TSM

Needs torch beside the engines. PyTorch gets the exported weights, an input that is normalised
already, inference mode and every core; its logits are compared before anything is timed. Rounds
alternate between all of them; a line of JSON each has the median, the fastest round, and the median
over the rounds of the ratio to PyTorch, which other work on the machine disturbs least.
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
from torch import nn  # pyright: ignore[reportMissingImports]

from tsm_jax.deploy.artifact import read_artifact
from tsm_jax.deploy.engine import FILES, installed, open_engine
from tsm_jax.models.normalize import MEAN, STD
from tsm_jax.weights.model_directory import Architecture, read_model_directory

F = nn.functional
STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def shift(x: torch.Tensor, segments: int) -> torch.Tensor:
    """`past_first` by 1/8, as MIT's code writes it (with the other direction)."""
    images, channels, height, width = x.shape
    x = x.view(-1, segments, channels, height, width)
    fold = channels // 8
    out = torch.zeros_like(x)
    out[:, 1:, :fold] = x[:, :-1, :fold]
    out[:, :-1, fold : 2 * fold] = x[:, 1:, fold : 2 * fold]
    out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
    return out.view(images, channels, height, width)


def conv_norm(tensors: dict[str, np.ndarray], name: str, stride: int = 1) -> nn.Sequential:
    kernel = tensors[f"{name}.conv.kernel"].transpose(3, 2, 0, 1)
    features, channels, size, _ = kernel.shape
    conv = nn.Conv2d(channels, features, size, stride, (size - 1) // 2, bias=False)
    norm = nn.BatchNorm2d(features)
    conv.weight.data = torch.tensor(kernel)
    norm.weight.data = torch.tensor(tensors[f"{name}.norm.scale"])
    norm.bias.data = torch.tensor(tensors[f"{name}.norm.bias"])
    norm.running_mean = torch.tensor(tensors[f"{name}.norm.mean"])
    norm.running_var = torch.tensor(tensors[f"{name}.norm.var"])
    return nn.Sequential(conv, norm)


class Bottleneck(nn.Module):
    def __init__(self, tensors: dict[str, np.ndarray], name: str, stride: int, segments: int):
        super().__init__()
        self.segments = segments
        self.conv1 = conv_norm(tensors, f"{name}.conv1")
        self.conv2 = conv_norm(tensors, f"{name}.conv2", stride)
        self.conv3 = conv_norm(tensors, f"{name}.conv3")
        has_shortcut = f"{name}.shortcut.conv.kernel" in tensors
        self.shortcut = conv_norm(tensors, f"{name}.shortcut", stride) if has_shortcut else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.conv1(shift(x, self.segments)), inplace=True)
        y = F.relu(self.conv2(y), inplace=True)
        y = self.conv3(y)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


class TorchTSM(nn.Module):
    """`[N, T, 3, H, W]` to logits."""

    def __init__(self, tensors: dict[str, np.ndarray], architecture: Architecture):
        super().__init__()
        self.stem = conv_norm(tensors, "backbone.stem", 2)
        blocks = [
            Bottleneck(
                tensors,
                f"backbone.stages.{stage}.{index}",
                2 if stage > 0 and index == 0 else 1,
                architecture.num_segments,
            )
            for stage, count in enumerate(STAGES[architecture.depth])
            for index in range(count)
        ]
        self.blocks = nn.Sequential(*blocks)
        kernel = tensors["head.fc.kernel"]
        self.fc = nn.Linear(*kernel.shape)
        self.fc.weight.data = torch.tensor(kernel.T)
        self.fc.bias.data = torch.tensor(tensors["head.fc.bias"])

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(video.flatten(0, 1)), inplace=True)
        x = self.blocks(F.max_pool2d(x, 3, 2, 1)).mean((2, 3))
        return self.fc(x).view(len(video), -1, self.fc.out_features).mean(1)


def torch_run(folder: str, video: np.ndarray) -> tuple[Callable[[], object], np.ndarray]:
    """PyTorch eager on a clip, and its logits."""
    architecture = read_model_directory(folder).architecture
    expected = {"shift": "past_first", "shift_every": 1}
    eighth = architecture.shift_fraction == "1/8" or architecture.num_segments == 8
    if not eighth or any(getattr(architecture, key) != value for key, value in expected.items()):
        raise SystemExit("the PyTorch network here shifts past_first by 1/8 in every block")
    network = TorchTSM(load_file(os.path.join(folder, "model.safetensors")), architecture).eval()
    normalised = (video.astype(np.float32) / 255 - MEAN) / STD
    tensor = torch.tensor(normalised.transpose(0, 1, 4, 2, 3).copy())

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return network(tensor)

    return run, run().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True, help="exported, ResNet-50 or deeper")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    artifact = read_artifact(arguments.model)
    size = artifact.preprocessing.crop_size
    shape = (1, artifact.num_segments, size, size, 3)
    video = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    eager, expected = torch_run(arguments.model, video)
    runs: dict[str, Callable[[], object]] = {"torch eager float32": eager}
    differences = {"torch eager float32": 0.0}
    for (name, precision), file in FILES.items():
        if installed(name) and artifact.has(file):
            engine = open_engine(artifact, name, precision)
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
