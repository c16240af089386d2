"""Compares a training step with PyTorch: the same network, weights, pixels, loss and update.

    python benchmarks/train_step.py --size 112 --clips 8                  # on a CPU
    python benchmarks/train_step.py --dtype bfloat16 --clips 64 --compile  # on a GPU

Requires torch. Both sides start from uint8 clips on the device and do everything else in the step:
normalisation, forward pass, cross-entropy, backward pass, clipping by norm, weight decay and
momentum. PyTorch uses channels_last, autocast with `--dtype bfloat16`, and torch.compile with
`--compile`. Both sides first run a few steps whose losses are printed; then rounds of steps
alternate. Prints a line of JSON for each side with the ratio of the fastest rounds and the median
ratio over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave memory for PyTorch

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch_tsm import STAGES, F, TorchTSM

from tsm_jax.models.network import MEAN, STD, Network
from tsm_jax.models.tsm import TSM
from tsm_jax.training.mesh import make_mesh, put_batch
from tsm_jax.training.optimizer import make_optimizer, make_schedule
from tsm_jax.training.state import init_state
from tsm_jax.training.steps import make_train_step

CLASSES, LEARNING_RATE, MOMENTUM, DECAY, CLIP_NORM = 400, 0.01, 0.9, 1e-4, 20.0


def jax_step(
    options: argparse.Namespace, batch: dict[str, np.ndarray]
) -> tuple[Callable[[], float], dict[str, np.ndarray]]:
    """Returns a function that runs a round of tsm_jax on `batch` and returns the last loss, and
    the initial weights."""
    mesh = make_mesh(jax.devices()[:1])
    network = Network(
        lambda: TSM(
            options.backbone,
            num_classes=CLASSES,
            num_segments=options.segments,
            shift="none" if options.no_shift else "past_first",
            dropout=0.0,
            dtype=jax.numpy.dtype(options.dtype),
        )
    )
    schedule = make_schedule(
        LEARNING_RATE,
        schedule="step",
        boundaries=(),
        decay_factor=1.0,
        warmup_steps=0,
        total_steps=1000,
    )
    optimizer = make_optimizer(
        schedule,
        momentum=MOMENTUM,
        weight_decay=DECAY,
        decay="weights",
        clip_norm=CLIP_NORM,
        fc_weight_multiplier=1.0,
        fc_bias_multiplier=1.0,
    )
    step = make_train_step(network, optimizer, schedule, mesh=mesh, seed=0)
    state = init_state(network, optimizer, 0, mesh)
    weights = jax.device_get({**state.params, **state.batch_stats})
    on_device = put_batch({**batch, "mask": np.ones(len(batch["label"]), bool)}, mesh)

    def run() -> float:
        nonlocal state
        for _ in range(options.steps):
            state, metrics = step(state, on_device)
        return float(metrics["loss"]) / options.clips

    return run, weights


def torch_step(
    options: argparse.Namespace, batch: dict[str, np.ndarray], weights: dict[str, np.ndarray]
) -> Callable[[], float]:
    """Returns a function that runs a round of PyTorch from the same weights."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = TorchTSM(
        weights, backbone=options.backbone, segments=options.segments, shift=not options.no_shift
    )
    channels_last: Any = {"memory_format": torch.channels_last}  # missing in PyTorch's type stubs
    network = network.to(device, **channels_last).train()
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": DECAY}, {"params": others}],
        lr=LEARNING_RATE,
        momentum=MOMENTUM,
        fused=device == "cuda",
    )
    torch.backends.cudnn.benchmark = True  # select the fastest algorithms, as XLA does
    video = torch.tensor(batch["video"][:, 0], device=device)
    labels = torch.tensor(batch["label"], device=device, dtype=torch.int64)
    mean, std = (torch.tensor(values, device=device) for values in (MEAN, STD))

    def loss_of(video: torch.Tensor) -> torch.Tensor:
        normalised = ((video / 255 - mean) / std).movedim(-1, 2)
        images = normalised.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16"):
            logits = network(images.unflatten(0, video.shape[:2]))
        return F.cross_entropy(logits.float(), labels)

    loss_function = torch.compile(loss_of) if options.compile else loss_of

    def run() -> float:
        for _ in range(options.steps):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_function(video)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
            optimizer.step()
        return loss.item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet50", choices=STAGES)
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--clips", type=int, default=8, help="clips per batch")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--no_shift", action="store_true")
    parser.add_argument("--compile", action="store_true", help="use torch.compile for PyTorch")
    parser.add_argument("--steps", type=int, default=1, help="steps per round")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    shape = (options.clips, 1, options.segments, options.size, options.size, 3)
    batch = {
        "video": rng.integers(0, 256, shape, np.uint8),
        "label": rng.integers(0, CLASSES, options.clips).astype(np.int32),
    }
    ours, weights = jax_step(options, batch)
    runs = {"tsm_jax": ours, "torch": torch_step(options, batch, weights)}
    losses = {name: [run() for _ in range(3)] for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / options.steps)
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times["torch"], strict=True)]
        line = {
            "run": name,
            "device": jax.devices()[0].device_kind,
            "dtype": options.dtype,
            "input": f"{options.clips}x{options.segments}x{options.size}",
            "losses": [round(loss, 5) for loss in losses[name]],
            "fastest_ms": round(1000 * min(seconds), 1),
            "clips_per_second": round(options.clips / min(seconds), 1),
            "median_ratio_to_torch": round(statistics.median(ratios), 3),
            "ratio_of_fastest": round(min(seconds) / min(times["torch"]), 3),
        }
        print(json.dumps(line))


if __name__ == "__main__":
    main()
