"""Creates small data sets like those of users with few clips: long-tailed, or with a fixed camera.

    python benchmarks/own_videos_sets.py long_tail --data UCF_FRAMES --output data/long_tail
    python benchmarks/own_videos_sets.py fixed_camera --output data/fixed_camera
    python benchmarks/own_videos_sets.py backwards --data UCF_FRAMES --output data/backwards

Each command writes train.list, val.list and labels.txt for `--config.data.source=frames`.
UCF_FRAMES is a folder with `frames/`, `train.list` (`folder frames label`), `labels.txt` and
`groups.csv` (`clip,group`). Its frames are not copied. Training and validation clips come from
different groups.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
from pathlib import Path

import cv2
import numpy as np

# Clips per class in the long-tailed set: a geometric sequence from 40 to 4.
MOST, LEAST = 40, 4
# Training clips per class of the fixed camera.
CLIPS = (185, 60, 45, 39)
WIDTH, HEIGHT, FRAMES = 160, 120, 16
# The actions: the part is moved to one of two trays, or the arm turns back, or it waits.
CAMERA_CLASSES = ("tray_left", "tray_right", "turned_back", "waits")
# The two classes of UCF-101 whose first and last frames differ most: a linear classifier on the
# trend of frozen features recognises the direction of 73 % of the clips.
DIRECTED = ("HandstandWalking", "JumpingJack")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("fold", "long_tail", "fixed_camera", "backwards"))
    parser.add_argument("--data", type=Path, help="folder with frames, list, labels and groups")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--fold", type=int, default=0, help="which of the --folds validates")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.kind == "fixed_camera":
        fixed_camera(arguments.output, arguments.seed)
        return
    train, val = split(arguments.data, arguments.fold, arguments.folds)
    names = (arguments.data / "labels.txt").read_text().splitlines()
    if arguments.kind == "long_tail":
        train = long_tail(train, len(names), arguments.seed)
    if arguments.kind == "backwards":
        names, train, val = backwards(arguments.data, arguments.output, names, train, val)
    else:
        shutil.copy(arguments.data / "groups.csv", arguments.output / "groups.csv")
    write(arguments.output, names, train, val)


def split(data: Path, fold: int, folds: int) -> tuple[list, list]:
    """Returns the rows `(folder, frames, label)` of the training and validation clips of a fold."""
    with open(data / "groups.csv") as file:
        group_of = {row["clip"]: int(row["group"]) for row in csv.DictReader(file)}
    held_out = set(sorted(set(group_of.values()))[fold::folds])
    rows = [line.rsplit(" ", 2) for line in (data / "train.list").read_text().splitlines()]
    rows = [(folder, int(frames), int(label)) for folder, frames, label in rows]
    train = [row for row in rows if group_of[row[0]] not in held_out]
    return train, [row for row in rows if group_of[row[0]] in held_out]


def long_tail(train: list, classes: int, seed: int) -> list:
    """Keeps random clips: MOST of one random class, down to LEAST of another."""
    rng = np.random.default_rng(seed)
    wanted = np.rint(np.geomspace(MOST, LEAST, classes)).astype(int)[rng.permutation(classes)]
    kept = []
    for label in range(classes):
        own = [row for row in train if row[2] == label]
        kept += [own[i] for i in rng.permutation(len(own))[: wanted[label]]]
    return kept


def backwards(data: Path, output: Path, names: list, train: list, val: list) -> tuple:
    """Returns the clips of two classes forwards (label 0) and backwards (label 1)."""
    chosen = [names.index(name) for name in DIRECTED]

    def both(rows: list) -> list:
        made = []
        for folder, frames, label in rows:
            if label not in chosen:
                continue
            for direction, order in ((0, range(frames)), (1, range(frames - 1, -1, -1))):
                target = f"{('forwards', 'backwards')[direction]}/{folder}"
                (output / "frames" / target).mkdir(parents=True, exist_ok=True)
                for number, frame in enumerate(order, start=1):
                    link = output / "frames" / target / f"img_{number:05}.jpg"
                    source = (data / "frames" / folder / f"img_{frame + 1:05}.jpg").resolve()
                    link.unlink(missing_ok=True)
                    os.symlink(source, link)
                made.append((target, frames, direction))
        return made

    return ["forwards", "backwards"], both(train), both(val)


def write(output: Path, names: list, train: list, val: list) -> None:
    (output / "labels.txt").write_text("".join(f"{name}\n" for name in names))
    for split_name, rows in (("train", train), ("val", val)):
        lines = [f"{folder} {frames} {label}\n" for folder, frames, label in rows]
        (output / f"{split_name}.list").write_text("".join(lines))
    counts = np.bincount([row[2] for row in train], minlength=len(names))
    print(
        f"{output}: {len(train)} training clips ({counts.tolist()} per class),"
        f" {len(val)} validation clips"
    )


def fixed_camera(output: Path, seed: int) -> None:
    """Renders a machine in a hall seen by a fixed camera; a small image region tells the class."""
    rng = np.random.default_rng(seed)
    blocks = rng.uniform(60, 200, (12, 16, 3)).astype(np.float32)
    hall = cv2.resize(blocks, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for _ in range(40):  # edges, as in a real hall
        x, y, w, h = rng.integers(0, (WIDTH, HEIGHT, 40, 30))
        color = rng.uniform(40, 220, 3).tolist()
        cv2.rectangle(hall, (int(x), int(y)), (int(x + w), int(y + h)), color, -1)
    splits: dict[str, list] = {"train": [], "val": []}
    for split_name, counts in (("train", CLIPS), ("val", [20] * len(CLIPS))):
        for label, count in enumerate(counts):
            for index in range(count):
                folder = f"{split_name}/{CAMERA_CLASSES[label]}_{index:03}"
                target = output / "frames" / folder
                target.mkdir(parents=True, exist_ok=True)
                for number, frame in enumerate(_work(hall, label, rng), start=1):
                    cv2.imwrite(str(target / f"img_{number:05}.jpg"), frame)
                splits[split_name].append((folder, FRAMES, label))
    write(output, list(CAMERA_CLASSES), splits["train"], splits["val"])


def _work(hall: np.ndarray, label: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Renders one cycle of an arm that holds a part of 7 px, with varying light and noise."""
    pivot = np.array([WIDTH * 0.62, HEIGHT * 0.3])
    start, reach = rng.uniform(1.4, 1.75), rng.uniform(33, 37)
    travel = {0: 0.75, 1: -0.75, 2: 0.75, 3: 0.0}[label] * rng.uniform(0.8, 1.1)
    begin, end = rng.uniform(0.1, 0.3), rng.uniform(0.6, 0.8)
    light = rng.uniform(0.85, 1.15)
    color = (rng.uniform(0, 255, 3)).tolist()  # of the part; unrelated to the class
    frames = []
    for time in np.linspace(0, 1, FRAMES):
        share = np.clip((time - begin) / (end - begin), 0, 1)
        if label == 2:
            share = 1 - abs(2 * share - 1)
        angle = start + travel * share
        tip = pivot + reach * np.array([np.cos(angle), np.sin(angle)])
        picture = hall.copy()
        begins_at, ends_at = ([int(value) for value in np.rint(point)] for point in (pivot, tip))
        cv2.line(picture, begins_at, ends_at, (90, 90, 90), 3)
        cv2.circle(picture, ends_at, 4, color, -1)
        flicker = light * rng.uniform(0.97, 1.03)
        noisy = picture * flicker + rng.normal(0, 4, picture.shape)
        frames.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return frames


if __name__ == "__main__":
    main()
