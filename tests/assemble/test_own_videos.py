"""Your own videos in class folders: from the folder to an evaluated model, as in the README."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import pytest

from tsm_jax import evaluate, prepare, train
from tsm_jax.assemble import evaluate as evaluation_run
from tsm_jax.assemble import train as training_run
from tsm_jax.data import moving_shapes
from tsm_jax.training.mesh import make_mesh

RECIPE = str(Path(__file__).parents[2] / "configs" / "own_videos.py")

# Smaller than in the recipe, so that this takes seconds; a user need not set any of these.
SMALLER = {
    "model.backbone": "toy",
    "model.width": 8,
    "model.num_segments": 4,
    "data.crop_size": 32,
    "data.short_side": 32,
    "epochs": 1,
    "optimizer.warmup_epochs": 0.0,
    "workdir": "output/own_videos",  # they would be in its name
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 videos in folders named after their classes."""
    root = tmp_path_factory.mktemp("own")
    moving_shapes.render(root / "shapes", train_videos=24, val_videos=8, seed=0)
    shutil.move(root / "shapes" / "videos", root / "my videos")
    return root / "my videos"


def test_from_a_folder_to_an_evaluated_model(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for module in (training_run, evaluation_run):  # the other seven would only cost time here
        monkeypatch.setattr(module, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
    prepare.main(
        ["lists", "folders", "--videos", str(folder), "--val_share", "0.25", "--output", "data/own"]
    )
    smaller = [f"--config.{key}={value}" for key, value in SMALLER.items()]
    train.main(["--config", RECIPE, *smaller])
    evaluate.main(["--weights", "output/own_videos"])
    out = capsys.readouterr().out
    assert "of 8 classes" in out
    val_clips = len(Path("data/own/val.list").read_text().splitlines())
    assert val_clips == 8
    assert f"on {val_clips} clips of data/own/val.list" in out
    lines = map(json.loads, Path("output/own_videos/metrics.jsonl").read_text().splitlines())
    (validation,) = [line for line in lines if line["kind"] == "val"]
    trained = validation["top1"]
    (evaluated,) = [line for line in out.splitlines() if line.startswith("output/own_videos: ")]
    assert f"top1 {trained:.5f}" in evaluated
    assert f"mean_recall {validation['mean_recall']:.5f}" in evaluated
    assert "Already save the best model (mean_recall)" in out
    assert f"best mean_recall {validation['mean_recall']:.5f}, saved in" in out
    assert Path("output/own_videos/labels.txt").read_text().splitlines() == sorted(
        path.name for path in folder.iterdir()
    )
    card = Path("output/own_videos/MODEL_CARD.md").read_text()
    assert f"| {trained:.4f} |" in card
    assert "24 of data/own/train.list" in card
    assert "move_left" in card
    assert "--model output/own_videos --input" in card
