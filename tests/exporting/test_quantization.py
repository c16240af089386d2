"""The int8 graph: sums that fit on every processor, and means that rounding does not move."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import onnxruntime  # noqa: E402
from onnx import numpy_helper  # noqa: E402

from tsm_jax.exporting import quantization  # noqa: E402
from tsm_jax.exporting.program import make_program  # noqa: E402
from tsm_jax.exporting.writer import write_program  # noqa: E402


@pytest.fixture(scope="module")
def graphs(make_model, tmp_path_factory):
    """The path of a float32 graph and of its int8 graph; clips."""
    folder = tmp_path_factory.mktemp("int8")
    write_program(make_program(make_model(backbone="toy", width=32)), str(folder), ["onnx"])
    paths = [str(folder / name) for name in ("model.onnx", "int8.onnx")]
    clips = np.random.default_rng(0).integers(0, 256, (6, 4, 32, 32, 3), np.uint8)
    quantization.quantize(*paths, clips)
    return (*paths, clips)


def logits(path, clips):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], {"video": clip[None]})[0] for clip in clips])


def test_two_products_fit_into_16_bits(graphs):
    tensors = map(numpy_helper.to_array, onnx.load(graphs[1]).graph.initializer)
    kernels = [tensor for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim == 4]
    assert len(kernels) == 5
    for kernel in kernels:
        depthwise = kernel.shape[1] == 1
        assert np.abs(kernel.astype(int)).max() == (127 if depthwise else 64)


def test_rounding_does_not_move_the_means(graphs, monkeypatch, tmp_path):
    path, int8_path, clips = graphs
    means = quantization._input_means(onnx.load(path), clips)
    zeros = {name: np.zeros_like(mean) for name, mean in means.items()}
    monkeypatch.setattr(quantization, "_input_means", lambda *_: zeros)
    uncorrected_path = str(tmp_path / "uncorrected.onnx")
    quantization.quantize(path, uncorrected_path, clips)
    expected = logits(path, clips).mean(0)
    moved, uncorrected = (
        np.abs(logits(int8, clips).mean(0) - expected).max()
        for int8 in (int8_path, uncorrected_path)
    )
    assert moved < 0.5 * uncorrected
