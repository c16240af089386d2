"""Logits of PaddleVideo's network from PaddleVideo's weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import paddle_recipe
import pytest

import tsm_jax
from tsm_jax import convert
from tsm_jax.assemble.recognizer import Recognizer
from tsm_jax.weights.foreign_models import read_paddle_model
from tsm_jax.weights.model_directory import read_model_directory
from tsm_jax.weights.pickle_writers import write_paddle

# golden: (segments, classes, weight seed, clips, pixels)
CASES = {"seg8_k400": (8, 400, 0, 1, 224), "seg16_c10": (16, 10, 1, 2, 64)}
TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory, forward_goldens):
    """(path of a .pdparams, segments, video [N, T, H, W, 3], expected logits)."""
    segments, classes, seed, clips, pixels = CASES[request.param]
    path = tmp_path_factory.mktemp("paddle") / f"{request.param}.pdparams"
    write_paddle(path, paddle_recipe.state_dict(classes, seed))
    video = paddle_recipe.forward_input(seed, clips, segments, pixels)
    return str(path), segments, np.moveaxis(video, 2, -1), forward_goldens[request.param]


def error(logits, expected):
    """Largest difference in shares of the largest logit."""
    return abs(logits - expected).max() / abs(expected).max()


def test_logits_from_the_file(case):
    path, segments, video, expected = case
    assert error(tsm_jax.load(path, num_segments=segments).forward(video), expected) < TOLERANCE


def test_convert_and_back_keep_network_and_tensors(case, tmp_path, capsys):
    path, segments, _, _ = case
    directory = str(tmp_path / "model")
    convert.main(["--input", path, "--output", directory, "--num_segments", str(segments)])
    assert f"{segments} segments" in capsys.readouterr().out
    again = str(tmp_path / "again.pdparams")
    convert.main(["--input", directory, "--output", again])
    first, second = (read_paddle_model(p, num_segments=segments) for p in (path, again))
    for model in (read_model_directory(directory), second):
        assert model.architecture == first.architecture
        assert model.tensors.keys() == first.tensors.keys()
        for name in first.tensors:
            np.testing.assert_array_equal(model.tensors[name], first.tensors[name])


WRONG = {
    "direction": {"shift": "future_first"},
    "no shift": {"shift": "none"},
    "fraction": {"shift_fraction": "1/8"},
    "every second block": {"shift_every": 2},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory, forward_goldens):
    """(model, video, expected logits) of the golden with 16 segments."""
    path = tmp_path_factory.mktemp("paddle") / "small.pdparams"
    write_paddle(path, paddle_recipe.state_dict(10, 1))
    video = np.moveaxis(paddle_recipe.forward_input(1, 2, 16, 64), 2, -1)
    return read_paddle_model(str(path), num_segments=16), video, forward_goldens["seg16_c10"]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(wrong, marks=[] if wrong == "direction" else pytest.mark.slow)
        for wrong in WRONG
    ],
)
def test_another_architecture_does_not_pass_for_this_one(small, wrong):
    """These differences load without an error, so the golden must tell them."""
    model, video, expected = small
    model = replace(model, architecture=replace(model.architecture, **WRONG[wrong]))
    assert error(Recognizer(model).forward(video), expected) > 30 * TOLERANCE


def test_another_classifier_layout_does_not_pass_either(small):
    model, video, expected = small
    kernel = model.tensors["head.fc.kernel"]
    transposed = {**model.tensors, "head.fc.kernel": kernel.reshape(kernel.shape[::-1]).T}
    logits = Recognizer(replace(model, tensors=transposed)).forward(video)
    assert error(logits, expected) > 30 * TOLERANCE
