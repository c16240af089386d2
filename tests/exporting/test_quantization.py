"""Tests that int8 sums do not overflow on any processor and that rounding preserves the means."""

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

CLIPS = np.random.default_rng(0).integers(0, 256, (6, 4, 32, 32, 3), np.uint8)


def export(model, folder):
    """Writes a float32 graph and its int8 graph and returns both paths."""
    write_program(make_program(model), str(folder), ["onnx"])
    paths = [str(folder / name) for name in ("model.onnx", "int8.onnx")]
    quantization.quantize(*paths, CLIPS)
    return paths


def logits(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["logits"], {"video": clip[None]})[0] for clip in CLIPS])


@pytest.mark.parametrize(
    "backbone", ["toy", "pplcnet_v2"]
)  # the latter has a convolution without bias
def test_two_products_fit_into_16_bits(make_model, tmp_path, backbone):
    _, path = export(make_model(backbone=backbone, width=32), tmp_path)
    tensors = map(numpy_helper.to_array, onnx.load(path).graph.initializer)
    kernels = [tensor for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim == 4]
    assert len(kernels) >= 5
    for kernel in kernels:
        depthwise = kernel.shape[1] == 1
        assert np.abs(kernel.astype(int)).max() == (127 if depthwise else 64)


def test_rounding_preserves_the_means(make_model, monkeypatch, tmp_path):
    path, int8_path = export(make_model(backbone="toy", width=32), tmp_path)
    means = quantization._input_means(onnx.load(path), CLIPS)
    zeros = {name: np.zeros_like(mean) for name, mean in means.items()}
    monkeypatch.setattr(quantization, "_input_means", lambda *_: zeros)
    uncorrected_path = str(tmp_path / "uncorrected.onnx")
    quantization.quantize(path, uncorrected_path, CLIPS)
    expected = logits(path).mean(0)
    moved, uncorrected = (
        np.abs(logits(int8).mean(0) - expected).max() for int8 in (int8_path, uncorrected_path)
    )
    assert moved < 0.5 * uncorrected
