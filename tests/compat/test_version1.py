"""Files stored by version 0.1.0 keep their meaning: they are read, run and resumed as before.

`version1.tar.xz` was written by `make.py` with 0.1.0. Numbers may differ only by rounding.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
import pytest

import tsm_jax
from tsm_jax.assemble.evaluate import evaluate_weights
from tsm_jax.assemble.recognizer import Recognizer
from tsm_jax.assemble.train import train_recipe
from tsm_jax.assemble.weights import load_model
from tsm_jax.config import VERSION, default, flatten, from_dict, to_dict
from tsm_jax.data.protocols import Preprocessing
from tsm_jax.deploy.artifact import read_artifact
from tsm_jax.deploy.engine import ENGINES, installed, open_engine
from tsm_jax.errors import UserError
from tsm_jax.exporting.model_card import model_card
from tsm_jax.exporting.self_check import relative_difference
from tsm_jax.models.architecture import Architecture
from tsm_jax.training.mesh import make_mesh
from tsm_jax.weights.model_directory import FORMAT_VERSION, read_description, write_model_directory

HERE = Path(__file__).parent
RECIPE = "workdir/checkpoints/2/recipe/metadata"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("version1")
    with tarfile.open(HERE / "version1.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def answers(stored, monkeypatch):
    """The results of 0.1.0, with the folder that it wrote as the current directory."""
    monkeypatch.chdir(stored)
    return json.loads((stored / "answers.json").read_text())


def test_every_recipe_key_keeps_its_meaning(answers):
    values = json.loads(Path(RECIPE).read_text())
    assert "version" not in values  # introduced in version 2
    group = {"model", "data", "optimizer"}
    before = {key: value for key, value in values.items() if key not in group}
    before |= {f"{part}.{key}": value for part in group for key, value in values[part].items()}
    before = {key: tuple(v) if isinstance(v, list) else v for key, v in before.items()}
    assert (before.pop("model.depth"), before.pop("model.data_format")) == (18, "NHWC")
    expected = {
        **before,
        "model.backbone": "resnet18",
        "best_metric": "top1",
        # Keys of version 3.
        "mixup": 0.0,
        "model.frozen_batch_norm": "none",
        "model.running_variance": "biased",
        "class_balance": 0.0,
        "patience": 0,
        "data.groups": "",
        "data.sampling": "uniform",
        "data.crop_scales": (1.0, 0.875, 0.75, 0.66),
        "data.color_jitter": 0.0,
        "data.frame_rate": 0.0,  # unknown
        "data.flip_labels": "keep",
        "optimizer.frozen": (),
        "optimizer.nesterov": False,
        "optimizer.warmup_start": 0.0,
        # Keys of version 4.
        "data.crop": "multi_scale",
        "precise_batch_norm": 0,
        "precise_batch_norm_batches": 200,
        # Keys of version 5.
        "refit_classifier": 0.0,
    }
    assert dict(flatten(from_dict(values))) == expected


@pytest.mark.parametrize("folder", ["model", "exported"])
def test_a_description_keeps_its_meaning(answers, folder):
    architecture, preprocessing, _ = read_description(folder)
    assert architecture == Architecture(
        "resnet18", 8, 4, width=8, shift="future_first", shift_fraction="1/num_segments"
    )
    assert architecture.shift_every == 1
    assert preprocessing == Preprocessing(crop_size=32, short_side=32, protocol="test")


@pytest.mark.parametrize("weights", ["workdir", "model", "exported"])
def test_weights_give_the_same_answers(answers, weights):
    recognizer = Recognizer(load_model(weights))
    video = np.random.default_rng(0).normal(size=(2, 4, 32, 32, 3)).astype("float32")
    assert relative_difference(recognizer.forward(video), np.array(answers["forward"])) < 1e-5
    if weights == "workdir":
        best = recognizer.predict("clips/val3.mp4", top_k=8)
        assert [prediction.label for prediction in best] == list(answers["predict"])
        scores = [prediction.score for prediction in best]
        np.testing.assert_allclose(scores, list(answers["predict"].values()), atol=1e-4)


def test_evaluation_of_a_run_is_unchanged(answers):
    metrics = evaluate_weights(None, "workdir").metrics
    for name, value in answers["evaluate"].items():
        assert metrics[name] == pytest.approx(value, rel=1e-4), name


def test_resuming_a_run_is_unchanged(answers, tmp_path):
    """Trains one more epoch, which depends on weights, momentum, step, data order and schedule."""
    config = from_dict(json.loads(Path(RECIPE).read_text()))
    config.epochs, config.workdir = 2, str(tmp_path / "workdir")
    shutil.copytree("workdir", config.workdir)
    train_recipe(config, make_mesh(jax.devices()[:1]))
    lines = map(json.loads, (tmp_path / "workdir" / "metrics.jsonl").read_text().splitlines())
    (line,) = [line for line in lines if line["kind"] == "train" and line["epoch"] == 2]
    # Batch norm over the few pixels of a tiny network amplifies rounding to 4e-4 of the loss;
    # without the momentum it would be off by 2e-2.
    for name in ("step", "loss", "learning_rate"):
        assert line[name] == pytest.approx(answers["continued"][name], rel=2e-3), name


@pytest.mark.parametrize("engine", ENGINES)
def test_an_exported_folder_runs_in_every_engine(answers, engine):
    if not installed(engine):
        pytest.skip(f"{engine} is not installed")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    expected = np.array(answers["pixels"])
    for clip, logits in zip(pixels, expected, strict=True):
        found = open_engine(read_artifact("exported"), engine).logits(clip[None])
        assert relative_difference(found[0], logits) < 1e-4
    assert read_artifact("exported").int8_weight_limit == 127


def test_an_export_whose_protocol_has_larger_views_than_its_graphs(answers, tmp_path):
    """Version 1 wrote graphs for `crop_size`, regardless of the stored protocol."""
    if not installed("onnxruntime"):
        pytest.skip("onnxruntime is not installed")
    folder = shutil.copytree("exported", tmp_path / "exported")
    path = folder / "config.json"
    description = json.loads(path.read_text())
    description["preprocessing"] = {"crop_size": 32, "short_side": 48, "protocol": "mit_three_crop"}
    path.write_text(json.dumps(description))
    with pytest.raises(UserError, match="graph accepts only 32 px: choose --protocol test, "):
        tsm_jax.load(folder, engine="onnxruntime")
    predictor = tsm_jax.load(folder, engine="onnxruntime", protocol="test")
    assert predictor.protocol.name == "test"
    pixels = np.random.default_rng(1).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    logits = predictor.engine.logits(pixels[:1])[0]
    assert relative_difference(logits, np.array(answers["pixels"][0])) < 1e-4
    assert len(predictor.predict("clips/val3.mp4", top_k=8)) == 8


def test_rewriting_upgrades_to_the_newest_version(answers, tmp_path):
    model = load_model("model")
    write_model_directory(model, str(tmp_path / "model"))
    description = read_description(str(tmp_path / "model"))[2]
    assert description["format_version"] == FORMAT_VERSION
    assert description["architecture"] == asdict(model.architecture)
    card = model_card(model, title="x", path="x")  # reads the recipe in the provenance
    assert "TSM-ResNet-18" in card and "| clips per step | 4 |" in card


def test_a_stored_form_does_not_change_within_a_version():
    """If this fails, add a version to `UPGRADES` instead of changing how the last one is read."""
    frozen = json.loads((HERE / f"version{VERSION}.json").read_text())
    assert frozen["recipe"]["version"] == VERSION and frozen["format_version"] == FORMAT_VERSION
    assert json.loads(json.dumps(to_dict(from_dict(frozen["recipe"])))) == frozen["recipe"]
    assert to_dict(default()).keys() == frozen["recipe"].keys()
    assert asdict(Architecture(**frozen["architecture"])) == frozen["architecture"]
    assert asdict(Preprocessing(**frozen["preprocessing"])) == frozen["preprocessing"]


def test_version_2_of_a_recipe_means_what_it_meant():
    older = json.loads((HERE / "version2.json").read_text())["recipe"]
    expected = {**dict(flatten(default())), "data.flip_labels": "keep"}
    assert dict(flatten(from_dict(older))) == expected


@pytest.mark.parametrize("version", [3, 4])
def test_a_recipe_of_an_older_version_means_what_it_meant(version):
    older = json.loads((HERE / f"version{version}.json").read_text())["recipe"]
    assert dict(flatten(from_dict(older))) == dict(flatten(default()))


def test_a_newer_version_is_a_one_line_error(answers, tmp_path):
    model = load_model("model")
    write_model_directory(model, str(tmp_path / "model"))
    path = tmp_path / "model" / "config.json"
    newer = {**json.loads(path.read_text()), "format_version": FORMAT_VERSION + 1}
    path.write_text(json.dumps(newer))
    with pytest.raises(UserError, match="config.json: the model has version 4, .* a newer tsm_jax"):
        load_model(str(tmp_path / "model"))
