"""Compares logits with those of PaddleVideo's network with the same weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import golden_recipe
import numpy as np
import pytest

import tsm_jax
from tsm_jax import convert
from tsm_jax.assemble.recognizer import Recognizer
from tsm_jax.exporting.self_check import relative_difference
from tsm_jax.models.architecture import CLASSIFIER
from tsm_jax.weights.foreign_models import read_paddle_model
from tsm_jax.weights.model_directory import read_model_directory
from tsm_jax.weights.pickle_writers import write_paddle

# golden: (segments, classes, weight seed, clips, pixels)
CASES = {"seg8_k400": (8, 400, 0, 1, 224), "seg16_c10": (16, 10, 1, 2, 64)}
TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(scope="module")
def load(tmp_path_factory, forward_goldens):
    """Returns a function from the name of a golden to its .pdparams file, the model that was read
    from it, the video and the logits."""

    @cache
    def read(golden):
        segments, classes, seed, clips, pixels = CASES[golden]
        path = str(tmp_path_factory.mktemp("paddle") / f"{golden}.pdparams")
        write_paddle(path, golden_recipe.state_dict(classes, seed))
        video = np.moveaxis(golden_recipe.forward_input(seed, clips, segments, pixels), 2, -1)
        return path, tsm_jax.load(path, num_segments=segments), video, forward_goldens[golden]

    return read


@pytest.mark.parametrize("golden", CASES)
def test_logits_from_the_file(load, golden):
    _, recognizer, video, expected = load(golden)
    assert relative_difference(recognizer.forward(video), expected) < TOLERANCE


def test_converting_there_and_back_preserves_the_model(load, tmp_path, capsys):
    path, recognizer, *_ = load("seg16_c10")
    directory = str(tmp_path / "model")
    convert.main(["--input", path, "--output", directory, "--num_segments", "16"])
    assert "16 segments" in capsys.readouterr().out
    again = str(tmp_path / "again.pdparams")
    convert.main(["--input", directory, "--output", again])
    first, second = recognizer.model, read_paddle_model(again, num_segments=16)
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


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_the_golden_detects_another_architecture(load, wrong):
    """These differences load without an error, so only the golden can detect them."""
    _, recognizer, video, expected = load("seg16_c10")
    architecture = replace(recognizer.model.architecture, **WRONG[wrong])
    other = Recognizer(replace(recognizer.model, architecture=architecture))
    assert relative_difference(other.forward(video), expected) > 30 * TOLERANCE


def test_the_golden_detects_the_other_direction(load):
    """Playing the frames backwards is equivalent to the other direction of the shift
    (tests/models/test_tsm.py) and avoids compiling another network."""
    _, recognizer, video, expected = load("seg16_c10")
    assert relative_difference(recognizer.forward(video[:, ::-1]), expected) > 30 * TOLERANCE


def test_the_golden_detects_another_classifier_layout(load, monkeypatch):
    _, recognizer, video, expected = load("seg16_c10")
    kernel = recognizer.params[CLASSIFIER]
    monkeypatch.setitem(recognizer.params, CLASSIFIER, kernel.reshape(kernel.shape[::-1]).T)
    assert relative_difference(recognizer.forward(video), expected) > 30 * TOLERANCE
