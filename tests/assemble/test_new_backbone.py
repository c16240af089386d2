"""A backbone needs its module and a line in the table: everything else works with its name."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

import tsm_jax
from tsm_jax import cli
from tsm_jax.assemble.evaluate import evaluate_weights
from tsm_jax.assemble.train import train_recipe
from tsm_jax.assemble.weights import load_model
from tsm_jax.data.moving_shapes import LABELS
from tsm_jax.deploy.artifact import read_artifact
from tsm_jax.deploy.engine import ENGINES, installed, open_engine
from tsm_jax.exporting.self_check import relative_difference
from tsm_jax.exporting.writer import export_model
from tsm_jax.models.normalize import normalize
from tsm_jax.training.mesh import make_mesh

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.py")


def test_trains_evaluates_predicts_and_exports_by_its_name(
    toy_backbone, formats, videos, clips, tmp_path, capsys
):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    lists = {}
    for split, numbers in (("train", (0, 1, 3, 4)), ("val", (0, 5))):
        path = tmp_path / f"{split}.list"
        path.write_text("".join(f"{videos}/{i}.mp4 {i}\n" for i in numbers))
        lists[f"data.{split}_list"] = path
    values = {
        "model.backbone": toy_backbone,
        "model.width": 8,
        "model.num_segments": 4,
        "data.render": "",
        **{"data.crop_size": 32, "data.short_side": 32, "batch_size": 4, "epochs": 1},
        "optimizer.warmup_epochs": 0.0,
        "workdir": tmp_path / "work",
        **lists,
    }
    (tmp_path / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    config = cli.load_recipe(QUICKSTART, overrides)
    state = train_recipe(config, make_mesh(jax.devices()[:1]))
    assert int(state.step) == 1 and "TSM-Toy" in capsys.readouterr().out
    assert evaluate_weights(None, config.workdir).metrics["count"] == 2
    recognizer = tsm_jax.load(config.workdir)
    assert len(recognizer.predict(str(videos / "0.mp4"), top_k=8)) == 8

    export_model(load_model(config.workdir), str(tmp_path / "exported"), formats=formats)
    assert "TSM-Toy" in (tmp_path / "exported" / "README.md").read_text()
    expected = recognizer.forward(np.asarray(normalize(clips[:1])))
    for engine in filter(installed, ENGINES):
        found = open_engine(read_artifact(str(tmp_path / "exported")), engine).logits(clips[:1])
        assert relative_difference(found, expected) < 1e-4, engine
