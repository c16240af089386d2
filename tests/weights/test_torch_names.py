"""Mapping between the names of MIT, mmaction2, torchvision and timm, and ours."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tsm_jax.errors import UserError
from tsm_jax.models.architecture import Architecture
from tsm_jax.weights.tensor_checks import network_shapes
from tsm_jax.weights.torch_names import (
    IMAGE,
    MIT,
    MIT_ONLINE,
    MMACTION2,
    TorchNetwork,
    from_torch,
    to_torch,
)


def weights(backbone: str) -> dict[str, np.ndarray]:
    """Returns different values in every tensor, all positive because of the variances."""
    generator = np.random.default_rng(0)
    return {
        name: generator.uniform(0.1, 1.0, shape).astype(np.float32)
        for name, shape in network_shapes(backbone, 8, 3).items()
    }


def architecture(backbone: str, shift: str = "future_first", **more) -> Architecture:
    every = 2 if backbone in ("resnet101", "resnet152") and shift != "none" else 1
    return Architecture(backbone, 3, 8, width=8, shift=shift, **{"shift_every": every, **more})


def state_dict(backbone="resnet18", family=MIT, shift="future_first") -> dict[str, np.ndarray]:
    return to_torch(weights(backbone), architecture(backbone, shift), family)


# Numbers of blocks with a shift, counted in MIT's networks.
SHIFTED = {"resnet18": 8, "resnet34": 16, "resnet50": 16, "resnet101": 18, "resnet152": 26}


@pytest.mark.parametrize("family", [MIT, MMACTION2, IMAGE])
@pytest.mark.parametrize(
    "backbone",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("resnet34", "resnet152") else [])
        for name in (*SHIFTED, "mobilenet_v2")
    ],
)
def test_round_trip(backbone, family):
    shift = "none" if family == IMAGE else "future_first"
    theirs = state_dict(backbone, family, shift)
    ours, network = from_torch(theirs)
    shifted = 0 if family == IMAGE else SHIFTED.get(backbone, 10)
    every = architecture(backbone, shift).shift_every
    assert network == TorchNetwork(family, backbone, 8, 3, shift, every, shifted)
    expected = weights(backbone)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, strict=True)
        assert ours[name].flags.c_contiguous


def test_values_keep_their_places():
    theirs, ours = state_dict("resnet50"), weights("resnet50")
    for name, key in {
        "stem.conv.kernel": "conv1.weight",
        "stages.2.3.conv1.conv.kernel": "layer3.3.conv1.net.weight",
        "stages.0.0.shortcut.norm.var": "layer1.0.downsample.1.running_var",
        "stages.3.2.conv3.norm.bias": "layer4.2.bn3.bias",
    }.items():
        value = ours[f"backbone.{name}"]
        value = np.einsum("hwio->oihw", value) if value.ndim == 4 else value
        np.testing.assert_array_equal(theirs[f"module.base_model.{key}"], value)
    np.testing.assert_array_equal(theirs["module.new_fc.weight"], ours["head.fc.kernel"].T)


def renamed(state, *pairs):
    for old, new in pairs:
        state = {re.sub(old, new, name): value for name, value in state.items()}
    return state


@pytest.mark.parametrize(
    "change",
    [
        lambda state: renamed(state, (r"^module\.", "")),
        lambda state: renamed(state, (r"new_fc", "base_model.fc")),  # --dropout 0
        lambda state: renamed(state, (r"new_fc", "base_model.classifier")),
        lambda state: {n: v for n, v in state.items() if "num_batches" not in n},
        lambda state: {n: v.astype(v.dtype.str.replace("f4", "f8")) for n, v in state.items()},
        lambda state: {**state, "module.note": "text"},
    ],
)
def test_spellings(change):
    ours, network = from_torch(change(state_dict()))
    assert (network.family, network.shifted) == (MIT, 8)
    np.testing.assert_array_equal(ours["head.fc.bias"], weights("resnet18")["head.fc.bias"])
    assert all(value.dtype == np.float32 for value in ours.values())


def test_the_online_demo():
    network = from_torch(
        renamed(
            state_dict("mobilenet_v2", MIT, "none"),
            (r"^module\.base_model\.", ""),
            (r"^module\.new_fc", "classifier"),
        )
    )[1]
    assert (network.family, network.shift) == (MIT_ONLINE, "past_only")


def test_without_a_classifier_or_a_shift():
    state = {n: v for n, v in state_dict("resnet50", IMAGE, "none").items() if n[:3] != "fc."}
    ours, network = from_torch(state)
    assert network.num_classes is None and "head.fc.kernel" not in ours
    assert from_torch(state_dict("resnet50", MMACTION2, "none"))[1].shift == "none"


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


def first(state, ending):
    return next(name for name in state if name.endswith(ending))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {**without(s, first(s, "bn1.bias")), "module.base_model.extra": np.ones(1)},
            r"1 missing \(base_model.*bn1.bias\), 1 unexpected \(base_model.extra\)",
        ),
        (
            lambda s: {**s, first(s, "bn1.bias"): np.ones(9)},
            r"1 wrong .*bn1.bias is float64 \(9,\)",
        ),
        (lambda s: {**s, first(s, "bn1.bias"): np.ones(8, np.uint16)}, "1 wrong"),
        (lambda s: {**s, first(s, "bn1.bias"): np.full(8, np.nan)}, "1 tensors .* not finite"),
        (lambda s: {**s, first(s, "running_var"): -np.ones(8)}, "1 running variances are negative"),
        (
            lambda s: renamed(s, (r"(layer2\.0\.conv1)\.net", r"\1")),
            "its blocks with a shift are not.*missing base_model.layer2.0.conv1",
        ),
        (
            lambda s: renamed(s, (r"(layer2\.0\.conv2)", r"\1.net")),
            "unexpected base_model.layer2.0.conv2",
        ),
        (
            lambda s: {**s, first(s, "new_fc.bias").replace("new_fc", "base_model.fc"): np.ones(3)},
            "in two spellings",
        ),
        (lambda s: {**s, "module.base_model.conv1.weight": np.ones((8, 10, 7, 7))}, "optical flow"),
        (
            lambda s: {**s, "module.base_model.conv1.weight": np.ones((2000, 3, 7, 7))},
            "width is 2000",
        ),
        (
            lambda s: {**s, "module.base_model.layer2.0.nl.theta.weight": np.ones(1)},
            "non-local blocks",
        ),
        (lambda s: renamed(s, (r"layer2\.", "layer2.net.")), "temporal pooling"),
        (lambda s: renamed(s, (r"(layer\d\.\d)\.", r"\1.net.")), "shift of whole blocks"),
        (lambda s: {"base_model.conv1_7x7_s2.weight": np.ones(1)}, "a BNInception"),
        (lambda s: {"backbone.stage0.branch_norm.weight": np.ones(1)}, "a MobileOne"),
        (lambda s: {"conv1.0.weight": np.ones(1)}, "a timm variant"),
        (lambda s: weights("resnet18"), "own tensor names: give the folder"),
        (lambda s: {"a\nb": np.ones(1)}, "tensor names are not those of a ResNet"),
        (lambda s: {"epoch": 3}, "no named tensors"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(UserError, match=message) as error:
        from_torch(change(state_dict()), "x.pth")
    assert str(error.value).startswith("x.pth: ") and str(error.value).isprintable()


@pytest.mark.parametrize(
    ("of", "family", "message"),
    [
        (architecture("resnet18", "past_first"), MIT, "MIT shifts future_first"),
        (architecture("resnet18", shift_every=2), MIT, "in every block"),
        (architecture("resnet101", shift_every=1), MMACTION2, "in every second block"),
        (architecture("resnet18", "none"), MIT_ONLINE, "MIT's online demo has no"),
        (Architecture("mobilenet_v2_paddle", 3, 8, shift="none"), MIT, "MIT has no"),
        (
            Architecture("resnet18", 3, 16, 8, "future_first", "1/num_segments"),
            MIT,
            "by 1/8",
        ),
        (architecture("resnet34"), MIT, "the weights do not fit TSM-ResNet-34"),
    ],
)
def test_refuses_to_write_networks_that_a_project_lacks(of, family, message):
    with pytest.raises(UserError, match=message):
        to_torch(weights("resnet18"), of, family)
