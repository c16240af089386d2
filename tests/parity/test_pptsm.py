"""Compares logits with those of PP-TSM's networks, and converts their weights back."""

from __future__ import annotations

from dataclasses import replace

import golden_recipe
import numpy as np
import pytest

from tsm_jax import convert
from tsm_jax.assemble.recognizer import Recognizer
from tsm_jax.errors import UserError
from tsm_jax.exporting.self_check import relative_difference
from tsm_jax.weights.foreign_models import read_paddle_model
from tsm_jax.weights.model_directory import read_model_directory
from tsm_jax.weights.paddle_names import from_paddle, to_paddle
from tsm_jax.weights.pickle_writers import write_paddle

# golden: (backbone, segments, segments of its attention, weight seed, clips); 64 pixels
CASES = {
    "pptsm_r50_64": ("resnet50_vd", 8, None, 1, 2),
    "v2_8_64": ("pplcnet_v2", 8, None, 1, 2),
    "v2_16_att_64": ("pplcnet_v2_attention", 16, 16, 0, 2),
    "mnv2_16_64": ("mobilenet_v2_paddle", 16, None, 0, 1),  # its two folds differ in width
}
SLOW = ("v2_8_64",)


@pytest.fixture(scope="module", autouse=True)
def compiled_with_optimizations():
    """Overrides the fixture: there are many networks here, and the tolerance is large enough to
    compile them without optimizations."""


@pytest.fixture(params=[pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in CASES])
def case(request, tmp_path):
    backbone, segments, attention, seed, clips = CASES[request.param]
    path = tmp_path / "published.pdparams"
    write_paddle(path, golden_recipe.state_dict(400, seed, backbone, attention))
    expected = np.load(golden_recipe.GOLDENS / "pptsm_forward.npz")[request.param]
    video = np.moveaxis(golden_recipe.mosaic(seed, clips, segments, 64), 2, -1)
    return backbone, path, segments, video, expected


def error(model, video, expected):
    return relative_difference(Recognizer(model).forward(video), expected)


def test_logits_and_conversion_there_and_back(case, tmp_path, capsys):
    backbone, path, segments, video, expected = case
    directory = str(tmp_path / "model")
    convert.main(["--input", str(path), "--output", directory, "--num_segments", str(segments)])
    model = read_model_directory(directory)
    assert model.architecture.backbone == backbone
    assert model.preprocessing.protocol == "paddle_predict"
    assert error(model, video, expected) < 1e-4
    again = str(tmp_path / "again.pdparams")
    convert.main(["--input", directory, "--output", again])
    back = read_paddle_model(again, num_segments=segments)
    assert back.architecture == model.architecture
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(back.tensors[name], tensor, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"shift": "future_first"}, {"shift": "none"}, {"shift_fraction": "1/8"}], ids=str
)
def test_the_golden_detects_another_architecture(case, change):
    _, path, segments, video, expected = case
    model = read_paddle_model(str(path), num_segments=segments)
    if segments == 8 and "shift_fraction" in change:
        pytest.skip("an eighth is 1/num_segments")
    changed = replace(model, architecture=replace(model.architecture, **change))
    assert error(changed, video, expected) > 1e-3


def test_segments_are_read_from_the_attention_or_the_file_name_and_reported(tmp_path):
    def read(name, attention=None, **given):
        path = tmp_path / name
        backbone = "pplcnet_v2_attention" if attention else "pplcnet_v2"
        write_paddle(path, golden_recipe.state_dict(3, 0, backbone, attention))
        model = read_paddle_model(str(path), **given)
        return model.architecture.num_segments, model.provenance["read_as"]

    segments, words = read("x.pdparams", attention=16)
    assert segments == 16 and "classes, 16 segments; the file does not store the shift" in words
    segments, words = read("PPTSMv2_k400_16f_dml.pdparams")
    assert segments == 16 and "from the file name: 16 segments" in words
    segments, words = read("PPTSMv2_k400_16f.pdparams", num_segments=4)
    assert segments == 4 and "assuming 4 segments; the file stores neither" in words
    assert read("ppTSM_k400_uniform.pdparams")[0] == 8
    with pytest.raises(UserError, match="has an attention layer for 16 segments, not 8: give"):
        read("x_8f.pdparams", attention=16, num_segments=8)


def test_the_sum_of_branches_is_written_for_paddle():
    """PaddleVideo's network stores it next to the branches and uses it when deployed."""
    tensors = golden_recipe.state_dict(10, 0, "pplcnet_v2")
    block = "backbone.stages.3.1"
    back, _ = to_paddle(*from_paddle(tensors))
    assert back.keys() - tensors.keys() == {
        f"backbone.stages.{stage}.{index}.dw_conv.{leaf}"
        for stage, blocks in ((2, 6), (3, 2))
        for index in range(blocks)
        for leaf in ("weight", "bias")
    }
    x = np.random.default_rng(0).normal(size=5)  # middle row of the input of a channel
    layers = [f"{block}.dw_conv_list.{i}" for i in range(3)]
    expected = 0.0
    for layer, size in zip(layers, (5, 3, 1), strict=True):
        kernel = tensors[f"{layer}.conv.weight"][7, 0, size // 2]
        y = kernel @ x[2 - size // 2 : 3 + size // 2]
        scale, bias, mean, variance = (
            tensors[f"{layer}.bn.{leaf}"][7] for leaf in ("weight", "bias", "_mean", "_variance")
        )
        expected += (y - mean) / np.sqrt(variance + 1e-5) * scale + bias
    found = back[f"{block}.dw_conv.weight"][7, 0, 2] @ x + back[f"{block}.dw_conv.bias"][7]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
