"""Conversion of weights, and training that starts from PaddleVideo's weights."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import tsm_jax
from tsm_jax import cli, convert
from tsm_jax.assemble.train import train_recipe
from tsm_jax.assemble.weights import load_model
from tsm_jax.errors import UserError
from tsm_jax.models.architecture import Architecture
from tsm_jax.models.network import build_network
from tsm_jax.training.mesh import make_mesh
from tsm_jax.weights.foreign_models import read_paddle_tensors
from tsm_jax.weights.paddle_names import paddle_tensors
from tsm_jax.weights.pickle_writers import write_paddle

WIDTH = 8


def paddle_file(path, num_classes, seed=0):
    """Writes a TSM-ResNet-50 of width 8 like PaddleVideo; without classes it has no head."""
    rng = np.random.default_rng(seed)
    tensors = {
        tensor.paddle: (rng.uniform(0.5, 1.0, tensor.shape) / 10).astype(np.float32)
        for tensor in paddle_tensors("resnet50", WIDTH, num_classes)
    }
    if num_classes is None:
        tensors = {name.removeprefix("backbone."): value for name, value in tensors.items()}
        tensors["out.weight"] = np.zeros((32 * WIDTH, 1000), np.float32)
        tensors["out.bias"] = np.zeros(1000, np.float32)
    write_paddle(path, tensors)
    return str(path)


@pytest.fixture
def k400(tmp_path):
    return paddle_file(tmp_path / "TSM_k400.pdparams", 400)


def run(*arguments):
    convert.main([str(argument) for argument in arguments])


def test_records_facts_that_the_file_does_not_store(k400, tmp_path, capsys):
    run("--input", k400, "--output", tmp_path / "model", "--num_segments", 16)
    assert "TSM-ResNet-50, 400 classes, 16 segments" in capsys.readouterr().out
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architecture"] == {
        "backbone": "resnet50",
        "num_classes": 400,
        "num_segments": 16,
        "width": WIDTH,
        "shift": "past_first",
        "shift_fraction": "1/num_segments",
        "shift_every": 1,
    }
    assert config["provenance"]["source"] == "TSM_k400.pdparams"
    assert len(config["provenance"]["source_sha256"]) == 64
    labels = (tmp_path / "model" / "labels.txt").read_text().splitlines()
    assert (labels[5], len(labels)) == ("archery", 400)


def test_custom_labels(tmp_path):
    path = paddle_file(tmp_path / "x.pdparams", 3)
    assert load_model(path).labels == ["class 0", "class 1", "class 2"]
    (tmp_path / "names").write_text("run\njump\nsit\n")
    run("--input", path, "--output", tmp_path / "model", "--labels", tmp_path / "names")
    assert tsm_jax.load(str(tmp_path / "model")).labels == ["run", "jump", "sit"]


def test_refuses_to_write_a_network_that_paddle_lacks(k400, tmp_path):
    run("--input", k400, "--output", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["architecture"]["shift"] = "future_first"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="PaddleVideo shifts past_first"):
        run("--input", tmp_path / "model", "--output", tmp_path / "y.pdparams")
    assert not (tmp_path / "y.pdparams").exists()


def test_real_paddle_loads_what_we_write(k400, tmp_path):
    paddle = pytest.importorskip("paddle", reason="PaddlePaddle is not installed")
    run("--input", k400, "--output", tmp_path / "back.pdparams")
    expected, actual = paddle.load(k400), paddle.load(str(tmp_path / "back.pdparams"))
    assert expected.keys() == actual.keys()
    for name in expected:
        np.testing.assert_array_equal(np.asarray(actual[name]), np.asarray(expected[name]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "nope.pdparams", "--output", "m"], "no weights at nope.pdparams"),
        (["--input", "x", "--output", "m", "--to=onnx"], "invalid choice"),
        (
            ["--input", "x", "--output", "m", "--to=pdparams"],
            "pdparams needs a name that ends in .pdparams",
        ),
        (
            ["--input", "x", "--output", "m.pdparams", "--to=model"],
            "and model one in none of these",
        ),
        (["--input", "x", "--output", "m", "--num_segments", "1"], "must be at least 2"),
        (["--input", "paddle/tsm_k40", "--output", "m"], "paddle/tsm_k400"),
        (["--input", "x", "--output", "m.pth"], "--to mit or --to mmaction2"),
        (["--input", "x", "--output", "m", "--to=mit"], "one in .pth or .pth.tar"),
        (["--output", "m"], "required: --input"),
        (
            [
                "--input",
                "mit/TSM_kinetics_Flow_resnet50_shift8_blockres_avg_segment8_e50",
                "--output",
                "m",
            ],
            "not supported: optical flow",
        ),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(UserError) as error:
        run(*arguments)
    assert message in str(error.value)


def test_an_imagenet_file_can_only_start_a_training(tmp_path):
    path = paddle_file(tmp_path / "ResNet50_pretrain.pdparams", None)
    with pytest.raises(UserError, match=r"no classifier: .*init_from"):
        load_model(path)
    tensors, found = read_paddle_tensors(path)
    assert found.num_classes is None
    network = build_network(Architecture("resnet50", 400, 8, width=WIDTH), "float32")
    backbone = {name for name in network.param_shapes if not name.startswith("head.")}
    assert tensors.keys() == backbone | network.batch_stat_shapes.keys()


class StartedError(Exception):
    pass


@pytest.mark.parametrize("init_head", [False, True])
def test_training_starts_from_the_file(tmp_path, init_head, capsys, monkeypatch):
    """The state before the first step has the file's tensors, and the log lists them."""
    path = paddle_file(tmp_path / "TSM.pdparams", 8)
    recipe = cli.load_recipe(
        "configs/quickstart.py",
        [
            f"--config.init_from={path}",
            f"--config.init_head={init_head}",
            "--config.model.backbone=resnet50",
            f"--config.model.width={WIDTH}",
            "--config.data.source=synthetic",
            "--config.data.render=",
            f"--config.workdir={tmp_path / 'work'}",
        ],
    )
    seen = []

    def train(run, state, *_):
        seen.append(state)
        raise StartedError

    monkeypatch.setattr("tsm_jax.assemble.train.train", train)
    with pytest.raises(StartedError):
        train_recipe(recipe, make_mesh(jax.devices()[:1]))
    tensors = read_paddle_tensors(path)[0]
    state = {**seen[0].params, **seen[0].batch_stats}
    for name in tensors:
        same = np.array_equal(state[name], tensors[name])
        assert same == (init_head or not name.startswith("head."))
    count, names = (0, "none") if init_head else (2, "head.fc.bias, head.fc.kernel")
    assert f"{count} newly initialised ({names})" in capsys.readouterr().out
