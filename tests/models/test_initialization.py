"""Tests of the initial weights."""

from __future__ import annotations

import numpy as np
import pytest

from tsm_jax.models.network import Network, initial_tensor
from tsm_jax.models.tsm import TSM

KERNEL, SHAPE = "backbone.stages.1.0.conv2.conv.kernel", (3, 3, 64, 256)


def test_resnets_are_kaiming_normal_over_fan_in():
    params, _ = Network(lambda: TSM("resnet18", num_classes=4)).init(0)
    kernel = params["backbone.stages.1.0.conv1.conv.kernel"]  # [3, 3, 64, 128]
    assert kernel.dtype == np.float32
    assert kernel.std() == pytest.approx(np.sqrt(2 / (3 * 3 * 64)), rel=0.01)
    assert abs(kernel.mean()) < 0.01 * kernel.std()
    assert abs(kernel).max() > 3.5 * kernel.std()  # not truncated


def test_mobilenet_uses_fan_out_like_torchvision():
    params, _ = Network(lambda: TSM("mobilenet_v2", num_classes=4)).init(0)
    for name, fan_out in (("16.depthwise", 9 * 960), ("16.project", 320), ("15.expand", 960)):
        kernel = params[f"backbone.blocks.{name}.conv.kernel"]
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan_out), rel=0.02), name


def test_a_draw_depends_only_on_seed_and_name():
    kernel = initial_tensor(KERNEL, SHAPE, 0, 0.1)
    np.testing.assert_array_equal(initial_tensor(KERNEL, SHAPE, 0, 0.1), kernel)
    others = (
        initial_tensor(KERNEL, SHAPE, 1, 0.1),
        initial_tensor(KERNEL.replace("1", "2"), SHAPE, 0, 0.1),
    )
    for other in others:
        assert abs(np.corrcoef(other.ravel(), kernel.ravel())[0, 1]) < 0.02


def test_a_network_is_initialized_like_the_references():
    params, batch_stats = Network(lambda: TSM("resnet18", num_classes=400, width=8)).init(0)
    assert params["head.fc.kernel"].std() == pytest.approx(0.001, rel=0.02)
    for name, tensor in {**params, **batch_stats}.items():
        if not name.endswith(".kernel"):
            assert np.all(tensor == (1 if name.endswith((".scale", ".var")) else 0)), name
    kernels = [tensor.ravel() for name, tensor in params.items() if name.endswith("kernel")]
    assert len({tensor[:4].tobytes() for tensor in kernels}) == len(kernels)


def test_a_tensor_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"head\.gate"):
        initial_tensor("head.gate", (3,), 0)
