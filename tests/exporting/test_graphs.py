"""Tests that the traced program and both of its graphs compute the same as the model."""

from __future__ import annotations

import os
from dataclasses import replace

import jax
import numpy as np
import pytest

import tsm_jax
from tsm_jax.assemble.recognizer import Recognizer
from tsm_jax.errors import UserError
from tsm_jax.exporting.program import export_stablehlo, make_program
from tsm_jax.exporting.self_check import relative_difference
from tsm_jax.models.network import normalize

VARIANTS = {
    "basic blocks": {},
    "bottlenecks, future first, every second block": {
        "backbone": "resnet50",
        "shift": "future_first",
        "shift_every": 2,
    },
    "folds of different sizes": {
        "backbone": "toy",
        "num_segments": 3,
        "shift_fraction": "1/num_segments",
    },
    "nothing but folds": {"backbone": "toy", "num_segments": 2, "shift_fraction": "1/num_segments"},
    "no shift": {"backbone": "toy", "shift": "none"},
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def variant(request, make_model):
    """A model, three clips and the logits of the model."""
    model = make_model(**request.param)
    shape = (3, model.architecture.num_segments, 32, 32, 3)
    clips = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    return model, clips, Recognizer(model).forward(np.asarray(normalize(clips)))


@pytest.fixture(scope="module")
def build_onnx():
    pytest.importorskip("onnx", reason="onnx is not installed")
    from tsm_jax.exporting.onnx_graph import build_onnx

    return build_onnx


def classified(model, features):
    """Returns the logits of features whose last axis is the channels."""
    kernel, bias = model.tensors["head.fc.kernel"], model.tensors["head.fc.bias"]
    return (features.mean((2, 3)) @ kernel + bias).mean(1)


def run_onnx(graph, video):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return session.run(["logits", "features"], {"video": video})


def run_stablehlo(content, video):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    exported = jax.export.deserialize(bytearray(content))
    return [np.asarray(result) for result in jax.jit(exported.call)(video)]


def test_the_program_equals_the_model(variant):
    model, clips, expected = variant
    logits, features = jax.jit(make_program(model).__call__)(clips)
    assert relative_difference(np.asarray(logits), expected) < 1e-5
    assert relative_difference(classified(model, np.asarray(features)), expected) < 1e-5


@pytest.mark.parametrize("count", [1, 3])
def test_the_onnx_graph_equals_the_model_for_any_batch(variant, count, build_onnx):
    model, clips, expected = variant
    logits, features = run_onnx(build_onnx(make_program(model)), clips[:count])
    assert relative_difference(logits, expected[:count]) < 1e-5
    channels_last = features.transpose(0, 1, 3, 4, 2)
    assert relative_difference(classified(model, channels_last), expected[:count]) < 1e-5


def test_the_onnx_graph_is_plain(make_model, build_onnx):
    """It has no operators that runtimes may lack or interpret differently, and none in vain."""
    graph = build_onnx(make_program(make_model())).graph
    kinds = [node.op_type for node in graph.node]
    blocks, shifts = 8, 8
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "Transpose": 1,  # of the pixels
        "Cast": 1,
        "Sub": 1,  # mean of the pixels; their deviation is folded into the first kernel
        "Conv": 1 + 2 * blocks + 3,  # stem, blocks, shortcuts
        "Relu": 1 + 2 * blocks,
        "MaxPool": 1,
        "Add": blocks,
        "Slice": 3 * shifts,
        "Pad": 2 * shifts,
        "Concat": shifts,
        "Reshape": 1 + 2 * shifts + 2,  # of the pixels, shifts, logits and features
        "ReduceMean": 2,
        "Gemm": 1,
    }
    for node in graph.node:
        names = {attribute.name for attribute in node.attribute}
        assert "auto_pad" not in names
        assert node.op_type != "Conv" or len(node.input) == 3  # a bias, no Add after it
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_the_stablehlo_contains_no_local_paths(model):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    before = jax.config.jax_traceback_in_locations_limit
    content = export_stablehlo(make_program(model))
    assert os.path.dirname(tsm_jax.__file__).encode() not in content
    assert os.path.dirname(jax.__file__).encode() not in content
    assert jax.config.jax_traceback_in_locations_limit == before


def test_tensors_of_another_network_are_refused(model, make_model):
    with pytest.raises(UserError, match="does not fit the network"):
        make_program(replace(model, architecture=make_model(backbone="resnet34").architecture))


def test_the_onnx_graph_of_a_new_backbone_is_as_plain(make_model, build_onnx):
    graph = build_onnx(make_program(make_model(backbone="toy")))
    kinds = [node.op_type for node in graph.graph.node]
    assert (kinds.count("Transpose"), kinds.count("Conv"), kinds.count("Clip")) == (1, 5, 3)
    assert (kinds.count("Mul"), kinds.count("AveragePool")) == (0, 1)
