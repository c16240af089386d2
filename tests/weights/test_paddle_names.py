"""Mapping between PaddleVideo's names and ours."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from tsm_jax.errors import UserError
from tsm_jax.weights.paddle_names import (
    PaddleArchitecture,
    from_paddle,
    to_paddle,
)
from tsm_jax.weights.paddle_networks import paddle_tensors
from tsm_jax.weights.paddle_pickle import read_paddle


def listing(backbone: str) -> str:
    tensors = paddle_tensors(backbone, 64, 400)
    return "".join(f"{tensor.paddle} {tensor.shape} {tensor.parameter}\n" for tensor in tensors)


def test_names_shapes_and_parameters_of_resnet_50(goldens):
    assert (
        listing("resnet50").splitlines()
        == (goldens / "resnet50_names.txt").read_text().splitlines()
    )


@pytest.mark.parametrize(
    "backbone, digest",
    [
        ("resnet101", "d8910b9db1952830d7cfa7fe2c4bba6c7c4704c147f8905c5bdcddb841a30aab"),
        ("resnet152", "307e71928fe7162a4cd1c638931d62a10c137bd3ac2ebc5a14d5662f4fe076b7"),
    ],
)
def test_names_shapes_and_parameters_of_deeper_ones(backbone, digest):
    """Compares with listings of PaddleVideo's networks, made like `goldens/resnet50_names.txt`."""
    assert hashlib.sha256(listing(backbone).encode()).hexdigest() == digest


@pytest.mark.parametrize(
    "ours, paddle",
    [
        ("backbone.stem.conv.kernel", "backbone.conv._conv.weight"),
        ("backbone.stem.norm.scale", "backbone.conv._batch_norm.weight"),
        ("backbone.stages.0.1.conv1.conv.kernel", "backbone.res2b.conv0._conv.weight"),
        ("backbone.stages.1.3.conv3.norm.bias", "backbone.res3d.conv2._batch_norm.bias"),
        ("backbone.stages.2.0.shortcut.conv.kernel", "backbone.res4a.short._conv.weight"),
        ("backbone.stages.2.5.conv2.norm.mean", "backbone.res4f.conv1._batch_norm._mean"),
        ("backbone.stages.3.2.conv2.norm.var", "backbone.res5c.conv1._batch_norm._variance"),
    ],
)
def test_tensors_arrive_under_our_names(make_tensors, ours, paddle):
    tensors = make_tensors()
    value = tensors[paddle]
    if value.ndim == 4:
        value = np.einsum("oihw->hwio", value)
    weights, _ = from_paddle(tensors)
    np.testing.assert_array_equal(weights[ours], value, strict=True)
    assert weights[ours].flags.c_contiguous


def test_fully_connected_layer_is_not_transposed(make_tensors):
    tensors = make_tensors()
    weights, _ = from_paddle(tensors)
    np.testing.assert_array_equal(weights["head.fc.kernel"], tensors["head.fc.weight"])
    np.testing.assert_array_equal(weights["head.fc.bias"], tensors["head.fc.bias"])


@pytest.mark.parametrize(
    "backbone, count", [("resnet50", 267), ("resnet101", 522), ("resnet152", 777)]
)
@pytest.mark.parametrize("width, num_classes", [(2, 5), (8, None)])
def test_architecture_is_inferred(make_tensors, backbone, count, width, num_classes):
    tensors = make_tensors(backbone, width, num_classes)
    weights, architecture = from_paddle(tensors)
    assert architecture == PaddleArchitecture(backbone, width, num_classes)
    assert len(weights) == (count if num_classes else count - 2)
    back, parameter_names = to_paddle(weights, architecture)
    assert list(back) == list(tensors) == list(parameter_names)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)


def test_imagenet_file(make_tensors):
    tensors = make_tensors(num_classes=None)
    tensors = {name.removeprefix("backbone."): value for name, value in tensors.items()}
    tensors |= {"out.weight": np.ones((256, 1000), np.float32), "out.bias": np.ones(1000)}
    weights, architecture = from_paddle(tensors)
    assert architecture.num_classes is None
    assert architecture.ignored == ("out.weight", "out.bias")
    assert "head.fc.kernel" not in weights and len(weights) == 265


def renamed(name: str, backbone: str, head: str) -> str:
    return name.replace("backbone.", backbone, 1).replace("head.", head, 1)


@pytest.mark.parametrize(
    "backbone, head",
    [
        ("Student.0.", "Student.1."),
        ("Student.backbone.", "Student.head."),
        ("0.", "1."),
        ("Teacher.0.", "Teacher.1."),
    ],
)
def test_prefixes_of_distillation(make_tensors, backbone, head):
    tensors = {renamed(name, backbone, head): value for name, value in make_tensors().items()}
    weights, architecture = from_paddle(tensors)
    assert architecture == PaddleArchitecture("resnet50", 8, 10)
    np.testing.assert_array_equal(weights["head.fc.bias"], tensors[f"{head}fc.bias"])


def test_the_student_is_used(make_tensors):
    student = make_tensors()
    tensors = {f"Student.{name}": value for name, value in student.items()}
    tensors |= {f"Teacher.0.{name}": value + 1 for name, value in make_tensors("resnet101").items()}
    weights, architecture = from_paddle(tensors)
    assert architecture.backbone == "resnet50"
    np.testing.assert_array_equal(weights["head.fc.bias"], student["head.fc.bias"])
    assert len(architecture.ignored) == 522


def test_float16(make_tensors):
    tensors = make_tensors()
    for name in tensors:
        if name.endswith(("_conv.weight", "fc.weight", "fc.bias")):
            tensors[name] = tensors[name].astype(np.float16)
    weights, architecture = from_paddle(tensors)
    assert all(value.dtype == np.float32 for value in weights.values())
    assert architecture.dtypes == {"float16": 55, "float32": 212}
    np.testing.assert_array_equal(weights["head.fc.bias"], tensors["head.fc.bias"])


def test_bfloat16(make_tensors):
    """Paddle saves bfloat16 as uint16: the upper half of a float32."""
    tensors = make_tensors()
    bits = tensors["backbone.conv._conv.weight"].view(np.uint32) >> 16
    tensors["backbone.conv._conv.weight"] = bits.astype(np.uint16)
    weights, architecture = from_paddle(tensors)
    expected = (bits << 16).view(np.float32).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(weights["backbone.stem.conv.kernel"], expected)
    assert weights["backbone.stem.conv.kernel"].flags.c_contiguous
    assert architecture.dtypes == {"bfloat16": 1, "float32": 266}


def test_bfloat16_of_real_paddle(goldens, make_tensors):
    tensors = make_tensors(width=4)
    stored = read_paddle(goldens / "paddle3_bfloat16.pdparams")["0.bias"]
    tensors["backbone.conv._batch_norm.bias"] = stored
    weights, _ = from_paddle(tensors)
    found = weights["backbone.stem.norm.bias"]
    np.testing.assert_allclose(found, np.linspace(-1, 2, 4), rtol=2**-8)


# Files that do not fit.


def failure(tensors, **arguments) -> str:
    with pytest.raises(UserError) as caught:
        from_paddle(tensors, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_tensors_are_named(make_tensors):
    tensors = make_tensors()
    for name in [name for name in tensors if "res3b" in name]:
        del tensors[name]
    message = failure(tensors, source="a.pdparams")
    assert message.startswith("a.pdparams: ")
    assert "15 missing (backbone.res3b.conv0._conv.weight, " in message
    assert "and 10 more" in message


@pytest.mark.parametrize("name", ["head.fc.bias", "head.fc.weight", "backbone.conv._conv.weight"])
def test_one_missing_tensor(make_tensors, name):
    tensors = make_tensors()
    del tensors[name]
    assert f"1 missing ({name})" in failure(tensors)


def test_every_single_tensor_is_needed(make_tensors):
    tensors = make_tensors(width=1, num_classes=2)
    for name in tensors:
        without = {other: value for other, value in tensors.items() if other != name}
        assert name in failure(without)


def test_unexpected_tensors_are_named(make_tensors):
    tensors = make_tensors() | {"backbone.extra": np.ones(1), "line\nbreak": np.ones(1)}
    assert "2 unexpected (backbone.extra, line\\nbreak)" in failure(tensors)


def test_wrong_shapes_are_named(make_tensors):
    tensors = make_tensors()
    tensors["backbone.res5a.short._batch_norm.bias"] = np.ones(3, np.float32)
    tensors["head.fc.weight"] = tensors["head.fc.weight"].T
    message = failure(tensors)
    assert "backbone.res5a.short._batch_norm.bias is float32 (3,), not (256,)" in message
    assert "head.fc.weight is float32 (10, 256), not (256, 256)" in message


@pytest.mark.parametrize("value", [3.0, [1.0], None, np.ones(8, np.int64), np.ones(8, complex)])
def test_values_other_than_tensors(make_tensors, value):
    tensors = make_tensors() | {"backbone.conv._batch_norm.bias": value}
    assert "1 wrong (backbone.conv._batch_norm.bias is" in failure(tensors)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(make_tensors, value):
    tensors = make_tensors()
    tensors["backbone.res2a.conv1._conv.weight"][0, 0, 0, 0] = value
    message = failure(tensors)
    assert "1 tensors contain values that are not finite: backbone.res2a.conv1._conv" in message


def test_a_value_beyond_float32(make_tensors):
    tensors = make_tensors()
    tensors["head.fc.bias"] = np.full(10, 1e300)
    assert "not finite: head.fc.bias" in failure(tensors)


def test_negative_variance(make_tensors):
    tensors = make_tensors()
    tensors["backbone.conv._batch_norm._variance"][0] = -1
    assert "1 running variances are negative" in failure(tensors)


def test_the_same_tensor_twice(make_tensors):
    tensors = make_tensors()
    tensors["conv._conv.weight"] = tensors["backbone.conv._conv.weight"]
    assert "twice" in failure(tensors)


@pytest.mark.parametrize("prefix", ["", "backbone.", "Student.0."])
def test_mobilenet_v3_is_refused_by_name(prefix):
    name = f"{prefix}blocks.0.expand_conv.conv.weight"
    assert "PP-TSM with MobileNetV3" in failure({name: np.ones((1, 1, 1, 1), np.float32)})


PPTSM = ["resnet50_vd", "resnet101_vd", "mobilenet_v2_paddle", "pplcnet_v2", "pplcnet_v2_attention"]


@pytest.fixture(params=PPTSM)
def pptsm(request, make_tensors):
    """A small backbone of PP-TSM and its tensors."""
    segments = {"num_segments": 4} if request.param.endswith("attention") else {}
    return request.param, make_tensors(request.param, 16, 10, **segments)


def test_pp_tsm_round_trip(pptsm):
    backbone, tensors = pptsm
    weights, architecture = from_paddle(tensors)
    assert architecture.backbone == backbone
    assert (architecture.width, architecture.num_classes) == (16, 10)
    assert architecture.num_segments == (4 if backbone.endswith("attention") else None)
    back, _ = to_paddle(weights, architecture)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True, err_msg=name)
    assert from_paddle(back)[1] == architecture
    sums = from_paddle(back)[1].ignored
    assert all(".dw_conv." in name for name in sums)
    assert bool(sums) == backbone.startswith("pplcnet")


def test_a_distilled_pp_tsm(pptsm):
    backbone, tensors = pptsm
    distilled = {f"Student.{name}": value for name, value in tensors.items()}
    distilled |= {f"Teacher.{name}": value + 1 for name, value in tensors.items()}
    weights, architecture = from_paddle(distilled)
    assert architecture.backbone == backbone and len(architecture.ignored) == len(tensors)
    for name, value in from_paddle(tensors)[0].items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


def test_the_image_network_that_a_pp_tsm_starts_from(pptsm):
    """Its classifier must not be used for videos: the network was never trained with shifts."""
    backbone, tensors = pptsm
    image = {
        name.removeprefix("backbone."): value
        for name, value in tensors.items()
        if "head." not in name and "global_attention" not in name
    }
    image |= {"out.weight": np.ones((8, 1000), np.float32), "out.bias": np.ones(1000)}
    weights, architecture = from_paddle(image)
    assert architecture.backbone == backbone.removesuffix("_attention")
    assert architecture.num_classes is None and "head.fc.kernel" not in weights


def test_optimizer_state_is_recognised(goldens):
    content = read_paddle(goldens / "tiny.pdopt")
    assert "optimizer" in failure(content)


def test_nothing_and_other_networks():
    assert "no tensors" in failure({})
    assert "265 missing" in failure({"backbone.blocks.0.x": np.ones(1, np.float32)})


@pytest.mark.parametrize("shape", [(), (0, 3, 7, 7), (8,)])
def test_odd_stems(make_tensors, shape):
    tensors = make_tensors() | {"backbone.conv._conv.weight": np.ones(shape, np.float32)}
    assert "backbone.conv._conv.weight is float32" in failure(tensors)


@pytest.mark.parametrize("shape", [(), (0,), (256, 0)])
def test_odd_heads(make_tensors, shape):
    tensors = make_tensors() | {"head.fc.weight": np.ones(shape, np.float32)}
    assert "head.fc" in failure(tensors)


# Back to Paddle.


def test_to_paddle_checks_its_weights(make_tensors):
    weights, architecture = from_paddle(make_tensors())
    with pytest.raises(UserError, match="PaddleVideo has no TSM with resnet18; it has resnet50"):
        to_paddle(weights, replace(architecture, backbone="resnet18"))
    with pytest.raises(UserError, match="weights for resnet101: not a TSM ResNet: 255 missing"):
        to_paddle(weights, replace(architecture, backbone="resnet101"))
    weights["backbone.stem.norm.bias"] = np.ones(3, np.float32)
    with pytest.raises(UserError, match=r"backbone.stem.norm.bias is float32 \(3,\), not \(8,\)"):
        to_paddle(weights, architecture)
