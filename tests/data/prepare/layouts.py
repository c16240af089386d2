"""Tiny copies of data sets as downloaded, with missing clips and blanks in names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Layout:
    """A data set below a folder.

    Attributes:
        arguments: Arguments of `prepare lists`, except --output.
        recipe: Recipe that trains on it.
        prefix: Folder that the paths in the lists are relative to.
        lists: Expected lists, the training list first and the validation list last.
        labels: Classes in label order.
    """

    arguments: list[str]
    recipe: str
    prefix: Path
    lists: dict[str, list[str]]
    labels: list[str]


def frames(folder: Path, template: str, count: int = 6) -> None:
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        picture = RNG.integers(0, 256, (36, 48, 3), np.uint8)
        assert cv2.imwrite(str(folder / template.format(number)), picture)


def video(path: Path, make_video: Callable[..., Path], codec: str = "libx264") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = RNG.integers(0, 256, (6, 6, 8, 1), np.uint8)
    options = {"crf": "20"} if codec != "mpeg4" else {}
    make_video(path, small.repeat(8, 1).repeat(8, 2).repeat(3, 3), codec, **options)


def _as_frames(root: Path, stem: str, names: list[str], recipe: str) -> Layout:
    """Something-Something V1 and Jester: label files with `;`, and folders of `00001.jpg`."""
    labels = root / "label files"
    labels.mkdir()
    (labels / f"{stem}-labels.csv").write_text("".join(f"{name}\n" for name in names) + "\n\n")
    rows = {"train": "1203", "validation": "023"}
    for part, classes in rows.items():
        lines = [f"{part[0]}{i};{names[int(k)]}\r\n" for i, k in enumerate(classes)]
        (labels / f"{stem}-{part}.csv").write_text("".join(lines))
    (labels / f"{stem}-test.csv").write_text("900\n901\n")
    clips = root / f"20bn-{stem}"
    for clip in ("t0", "t1", "t3", "v0", "v1", "v2"):  # t2 is missing
        frames(clips / clip, "{:05}.jpg", 6 + (clip == "t1"))
    order = sorted(names)
    number = [order.index(name) for name in names]
    train = [f"t0 6 {number[1]}", f"t1 7 {number[2]}", f"t3 6 {number[3]}"]
    val = [f"v0 6 {number[0]}", f"v1 6 {number[2]}", f"v2 6 {number[3]}"]
    return Layout(
        ["--annotations", str(labels), "--frames", str(clips)],
        recipe,
        clips,
        {"train_frames.list": train, "val_frames.list": val},
        order,
    )


def sthv1(root: Path, make_video) -> Layout:
    names = [
        *("Turning something upside down", "Pushing something from right to left"),
        *("Laying something on the table on its side, not upright",),
        "Pushing something from left to right",
    ]
    return _as_frames(root, "something-something-v1", names, "tsm_sthv1_frames")


def jester(root: Path, make_video) -> Layout:
    names = ["Swiping Left", "Swiping Right"]
    names += ["Turning Hand Clockwise", "Turning Hand Counterclockwise"]
    return _as_frames(root, "jester-v1", names, "tsm_jester_frames")


def sthv2(root: Path, make_video) -> Layout:
    names = ["Holding something", "Pulling something from left to right"]
    names += ["Pulling something from right to left"]
    templates = [name.replace("something", "[something]") for name in names]
    labels = root / "labels"
    labels.mkdir()
    (labels / "labels.json").write_text(json.dumps({n: str(k) for k, n in enumerate(names)}))
    for part, classes in {"train": "120", "validation": "21"}.items():
        items = [
            {"id": f"{i}{part[0]}", "label": "x", "template": templates[int(k)]}
            for i, k in enumerate(classes)
        ]
        (labels / f"{part}.json").write_text(json.dumps(items))
    (labels / "test.json").write_text('[{"id": "77"}]')
    clips = root / "20bn something-something-v2"
    for clip in ("0t", "2t", "0v", "1v"):  # 1t is missing
        video(clips / f"{clip}.webm", make_video, "libvpx-vp9")
    return Layout(
        ["--annotations", str(labels), "--videos", str(clips)],
        "tsm_sthv2_videos",
        clips,
        {"train.list": ["0t.webm 1", "2t.webm 0"], "val.list": ["0v.webm 2", "1v.webm 1"]},
        names,
    )


def hmdb51(root: Path, make_video) -> Layout:
    splits, clips = root / "testTrainMulti_7030_splits", root / "hmdb51_org"
    splits.mkdir()
    for name in ("wave", "brush_hair"):
        files = [f"{name} #{i}_(nm).avi" for i in range(4)]
        for split in (1, 2, 3):
            marks = [0, 1, 1, 2] if split == 1 else [2, 1, 1, 0]
            lines = [f"{file} {mark} \n" for file, mark in zip(files, marks, strict=True)]
            (splits / f"{name}_test_split{split}.txt").write_text("".join(lines))
        for file in files[: 3 + (name == "wave")]:  # one of brush_hair is missing
            video(clips / name / file, make_video, "mpeg4")
    lists = {
        "train_split_1.list": [
            *(f"brush_hair/brush_hair #{i}_(nm).avi 0" for i in (1, 2)),
            *(f"wave/wave #{i}_(nm).avi 1" for i in (1, 2)),
        ],
        "val_split_1.list": ["wave/wave #3_(nm).avi 1"],
        "val_split_3.list": ["brush_hair/brush_hair #0_(nm).avi 0", "wave/wave #0_(nm).avi 1"],
    }
    return Layout(
        ["--splits", str(splits), "--videos", str(clips)],
        "tsm_hmdb51_videos",
        clips,
        lists,
        ["brush_hair", "wave"],
    )


def diving48(root: Path, make_video) -> Layout:
    words = [["Back", "15som", "05Twis", "FREE"], ["Inward", "Dive", "NoTwis", "PIKE"]]
    (root / "Diving48_vocab.json").write_text(json.dumps(words))
    for part, labels in {"train": (1, 0, 1), "test": (0, 1)}.items():
        items = [
            {"vid_name": f"{part} {i}", "label": k, "start_frame": 0, "end_frame": 5}
            for i, k in enumerate(labels)
        ]
        (root / f"Diving48_V2_{part}.json").write_text(json.dumps(items))
    for clip in ("train 0", "train 1", "test 0", "test 1"):  # train 2 is missing
        video(root / "rgb" / f"{clip}.mp4", make_video)
    return Layout(
        ["--annotations", str(root), "--videos", str(root / "rgb")],
        "tsm_diving48_videos",
        root / "rgb",
        {
            "train.list": ["train 0.mp4 1", "train 1.mp4 0"],
            "val.list": ["test 0.mp4 0", "test 1.mp4 1"],
        },
        ["Back+15som+05Twis+FREE", "Inward+Dive+NoTwis+PIKE"],
    )


def moments(root: Path, make_video) -> Layout:
    (root / "moments_categories.txt").write_text("clapping,0\nplaying+fun,1\nburying,2\n")
    (root / "trainingSet.csv").write_text(
        "playing+fun/a b.mp4,playing+fun,3,0\nburying/c.mp4,burying,4,1\n"
        "clapping/gone.mp4,clapping,3,0\n"
    )
    (root / "validationSet.csv").write_text(
        "clapping/d.mp4,clapping,3,0\nplaying+fun/e.mp4,playing+fun,3,0\n"
    )
    lists = {
        "train.list": ["training/playing+fun/a b.mp4 1", "training/burying/c.mp4 2"],
        "val.list": ["validation/clapping/d.mp4 0", "validation/playing+fun/e.mp4 1"],
    }
    for line in lists["train.list"] + lists["val.list"]:
        video(root / line.rsplit(None, 1)[0], make_video)
    return Layout(
        ["--annotations", str(root), "--videos", str(root)],
        "tsm_moments_videos",
        root,
        lists,
        ["clapping", "playing+fun", "burying"],
    )


LAYOUTS = {make.__name__: make for make in (sthv1, sthv2, jester, hmdb51, diving48, moments)}
