"""The folded network and both graphs of it answer what the model answers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from tsm_jax.build import build_network
from tsm_jax.deploy.folding import fold
from tsm_jax.deploy.self_check import relative_difference
from tsm_jax.deploy.stablehlo import forward
from tsm_jax.errors import UserError
from tsm_jax.models.normalize import normalize

VARIANTS = {
    "basic blocks": {},
    "bottlenecks, future first, every second block": {
        "depth": 50,
        "shift": "future_first",
        "shift_every": 2,
    },
    "folds of different sizes": {"num_segments": 3, "shift_fraction": "1/num_segments"},
    "nothing but folds": {"num_segments": 2, "shift_fraction": "1/num_segments"},
    "no shift": {"shift": "none"},
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def variant(request, make_model):
    """A model, three clips and the model's logits of them."""
    model = make_model(**request.param)
    shape = (3, model.architecture.num_segments, 32, 32, 3)
    clips = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    network = build_network(model.architecture, "float32")
    params, stats = (
        {name: model.tensors[name] for name in shapes}
        for shapes in (network.param_shapes, network.batch_stat_shapes)
    )
    apply = jax.jit(network.apply)
    return model, clips, np.asarray(apply(params, stats, normalize(clips, "NHWC"))[0])


def test_the_folded_network_answers_as_the_model(variant):
    model, clips, expected = variant
    network = fold(model)
    logits, features = jax.jit(partial(forward, network))(clips)
    assert relative_difference(np.asarray(logits), expected) < 1e-5
    per_frame = np.asarray(features).mean((2, 3)) @ network.fc_kernel + network.fc_bias
    assert relative_difference(per_frame.mean(1), expected) < 1e-5


@pytest.mark.parametrize("count", [1, 3])
def test_the_onnx_graph_answers_as_the_model_for_any_batch(variant, count):
    pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    from tsm_jax.deploy.onnx_graph import build_onnx

    model, clips, expected = variant
    network = fold(model)
    session = onnxruntime.InferenceSession(build_onnx(network).SerializeToString())
    logits, features = session.run(["logits", "features"], {"video": clips[:count]})
    assert relative_difference(logits, expected[:count]) < 1e-5
    per_frame = features.mean((3, 4)) @ network.fc_kernel + network.fc_bias
    assert relative_difference(per_frame.mean(1), expected[:count]) < 1e-5


def test_the_onnx_graph_is_plain(model):
    """Nothing in it that a runtime may lack or read in its own way."""
    pytest.importorskip("onnx", reason="onnx is not installed")
    from tsm_jax.deploy.onnx_graph import build_onnx

    graph = build_onnx(fold(model)).graph
    kinds = {node.op_type for node in graph.node}
    assert kinds == {
        *("Reshape", "Transpose", "Cast", "Sub", "Conv", "Relu", "MaxPool", "Add"),
        *("Slice", "Pad", "Concat", "GlobalAveragePool", "ReduceMean", "Gemm"),
    }
    for node in graph.node:
        names = {attribute.name for attribute in node.attribute}
        assert "auto_pad" not in names
        assert (node.op_type in ("Conv", "MaxPool")) == ("pads" in names)
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    convolutions = sum(node.op_type == "Conv" for node in graph.node)
    assert convolutions == 20  # 1 + 8 blocks of 2 + 3 shortcuts


def test_tensors_of_another_network_are_refused(model, make_model):
    with pytest.raises(UserError, match="does not fit the network"):
        fold(replace(model, architecture=make_model(depth=34).architecture))
