"""Measures accuracy with few real clips: linear probe, shipped recipe, recipe without the shift.

    python benchmarks/own_videos.py --data UCF_FRAMES --weights mobilenet_v2.safetensors

Runs one fold of a cross-validation by groups (`--folds 5 --fold 0`: every fifth group is used for
validation) on the data that own_videos_sets.py describes. `--seeds 1 2 3` repeats the trainings,
`--kinds recipe` selects some of them, and all other arguments are passed to them
(`--config.epochs=1`). Prints one table. The runs are kept in `--output`; an existing run is not
trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

SETS = Path(__file__).with_name("own_videos_sets.py")
KINDS = ("probe", "recipe", "no_shift")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", required=True, help="ImageNet weights for config.init_from")
    parser.add_argument("--recipe", default="configs/own_videos_mobilenet.py")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark_own_videos"))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments, rest = parser.parse_known_args()
    lists = arguments.output / f"fold{arguments.fold}of{arguments.folds}"
    fold = ("--fold", str(arguments.fold), "--folds", str(arguments.folds))
    run(str(SETS), "fold", "--data", str(arguments.data), "--output", str(lists), *fold)
    common = {
        "data.source": "frames",
        "data.prefix": arguments.data / "frames",
        "data.train_list": lists / "train.list",
        "data.val_list": lists / "val.list",
        "init_from": arguments.weights,
    }
    recipe = (
        "--config",
        arguments.recipe,
        *(f"--config.{k}={v}" for k, v in common.items()),
        *rest,
    )
    rows = []
    for kind in arguments.kinds:
        for seed in arguments.seeds if kind != "probe" else arguments.seeds[:1]:
            workdir = lists / f"{kind}_{seed}"
            shift = ("--config.model.shift=none",) if kind == "no_shift" else ()
            own = (f"--config.workdir={workdir}", f"--config.seed={seed}", *shift)
            started = time.perf_counter()
            verb = "probe" if kind == "probe" else "train"
            run("-m", f"tsm_jax.{verb}", *recipe, *own)
            rows.append((kind, seed, *accuracies(workdir, kind), time.perf_counter() - started))
    print(
        "\n| kind | seed | best top1 | best mean_recall | last top1 | last mean_recall | minutes |"
    )
    print("|---|---|---|---|---|---|---|")
    for kind, seed, *values, seconds in rows:
        shown = " | ".join("" if value is None else f"{value:.4f}" for value in values)
        print(f"| {kind} | {seed} | {shown} | {seconds / 60:.1f} |")


def run(*command: str) -> None:
    print("+", *command, flush=True)
    subprocess.run([sys.executable, *command], check=True)


def accuracies(workdir: Path, kind: str) -> tuple[float | None, ...]:
    """Returns top1 and mean_recall of the best and of the last validation.

    The last one is needed because the best one is selected on the clips that it is measured on.
    """
    if kind == "probe":
        found = json.loads((workdir / "probe.json").read_text())["validation"]
        return found["top1"], found["mean_recall"], None, None
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if line["kind"] == "val"]
    best = max(validations, key=lambda line: line["mean_recall"])
    last = validations[-1]
    return best["top1"], best["mean_recall"], last["top1"], last["mean_recall"]


if __name__ == "__main__":
    main()
