"""Reads and writes models in the formats of PyTorch projects."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from tsm_jax.assemble.weights import load_model, load_source
from tsm_jax.data.protocols import Preprocessing
from tsm_jax.errors import UserError
from tsm_jax.models.architecture import Architecture
from tsm_jax.weights.foreign_models import read_torch_model, write_torch_model
from tsm_jax.weights.labels import dataset_labels
from tsm_jax.weights.model_directory import Model
from tsm_jax.weights.pickle_writers import write_torch
from tsm_jax.weights.tensor_checks import network_shapes
from tsm_jax.weights.torch_names import IMAGE, MIT, MMACTION2, to_torch

MIT_NAME = "TSM_{}_RGB_resnet18_shift8_blockres_avg_segment{}_e50.pth"


def state_dict(family=MIT, classes=3, shift="future_first"):
    architecture = Architecture("resnet18", classes, 8, width=8, shift=shift)
    return to_torch(random_tensors("resnet18", classes), architecture, family)


def random_tensors(backbone, classes):
    generator = np.random.default_rng(0)
    return {
        name: generator.uniform(0.1, 1, shape).astype(np.float32)
        for name, shape in network_shapes(backbone, 8, classes).items()
    }


@pytest.fixture
def written(tmp_path):
    def write(name, state, wrap=True):
        path = tmp_path / name
        write_torch(path, {"epoch": 1, "state_dict": state} if wrap else state)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("name", "family", "classes", "segments", "labels", "protocol"),
    [
        (MIT_NAME.format("kinetics", 8), MIT, 400, 8, "kinetics400", "test"),
        (MIT_NAME.format("jester", 16), MIT, 27, 16, "jester", "test"),
        (
            MIT_NAME.format("kinetics", "8").replace(".pth", "_dense.pth.tar"),
            MIT,
            400,
            8,
            "kinetics400",
            "mit_dense_three_crop",
        ),
        (MIT_NAME.format("ucf101", "8_kinetics"), MIT, 101, 8, "ucf101", "test"),
        (MIT_NAME.format("something", 8), MIT, 174, 8, None, "test"),
        (
            "tsm_r18_1x1x16_50e_jester_rgb.pth",
            MMACTION2,
            27,
            16,
            "jester_mmaction2",
            "mmaction2_center_crop",
        ),
        (
            "tsm_kinetics400-pretrained-r18_8xb16-dense-1x1x8-50e_sthv2-rgb.pth",
            MMACTION2,
            174,
            8,
            None,
            "mmaction2_dense_ten_crop",
        ),
    ],
)
def test_facts_from_the_file_name(written, name, family, classes, segments, labels, protocol):
    model = read_torch_model(written(name, state_dict(family, classes)))
    assert model.architecture.num_segments == segments
    assert (model.architecture.shift, model.architecture.shift_fraction) == ("future_first", "1/8")
    known = dataset_labels(labels) if labels else None
    assert model.labels == (known or [f"class {i}" for i in range(classes)])
    assert model.preprocessing.protocol == protocol
    read_as = model.provenance["read_as"]
    assert f"from the file name: {segments} segments" in read_as
    assert ("class names unknown" in read_as) == (labels is None)


def test_unknown_segments_must_be_given(written):
    path = written("ckpt.best.pth.tar", state_dict())
    with pytest.raises(UserError, match="how many frames a clip has: give --num_segments"):
        load_model(path)
    assert load_model(path, num_segments=16).architecture.num_segments == 16
    assert load_source(path).shift == "future_first"  # initial weights need no segments
    path = written(MIT_NAME.format("something", 8), state_dict())
    with pytest.raises(UserError, match="8 segments according to its name, not 16"):
        load_model(path, num_segments=16)


def test_prints_how_a_file_was_read(written, capsys):
    load_model(written(MIT_NAME.format("something", 8), state_dict()))
    err = capsys.readouterr().err
    assert "MIT: ResNet-18, shift future_first in 8 blocks, 3 classes; from the file name" in err


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_an_image_network_is_a_network_of_one_frame(written, tmp_path, suffix):
    state = state_dict(IMAGE, shift="none")
    if suffix == ".pth":
        path = written("resnet18_kinetics_segment8.pth", state, wrap=False)
    else:
        path = str(tmp_path / "timm.safetensors")
        save_file({**state, "fc.bias": state["fc.bias"].astype(np.float16)}, path)
    model = load_model(path)
    assert (model.architecture.num_segments, model.architecture.shift) == (1, "none")
    np.testing.assert_array_equal(model.tensors["head.fc.kernel"], state["fc.weight"].T)
    assert load_source(path).labels is None


def test_a_network_without_a_classifier_can_only_start_a_training(written):
    state = state_dict(IMAGE, shift="none")
    path = written("x.pth", {n: v for n, v in state.items() if n[:3] != "fc."}, wrap=False)
    with pytest.raises(UserError, match=r"no classifier: .*init_from"):
        load_model(path)
    assert "head.fc.kernel" not in load_source(path).tensors


def digest(path):
    return hashlib.sha256(open(path, "rb").read()).hexdigest()


@pytest.mark.parametrize("to", ["mit", "mmaction2"])
@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v2"])
def test_round_trip_is_bitwise(tmp_path, backbone, to):
    """PyTorch and tsm_jax load the file like one written by PyTorch."""
    architecture = Architecture(backbone, 3, 16, width=8, shift="future_first")
    tensors = random_tensors(backbone, 3)
    preprocessing = Preprocessing(protocol="mit_twice", crop_size=192, frame_rate=12.5)
    model = Model(architecture, preprocessing, ["run", "jump", "sit"], tensors)
    paths = [str(tmp_path / name) for name in ("a.pth", "b.pth")]
    write_torch_model(model, paths[0], to)
    again = load_model(paths[0])
    assert (again.architecture, again.preprocessing) == (architecture, preprocessing)
    assert again.labels == model.labels
    for name, value in tensors.items():
        np.testing.assert_array_equal(again.tensors[name], value, strict=True)
    write_torch_model(again, paths[1], to)
    assert digest(paths[0]) == digest(paths[1])
    with pytest.raises(UserError, match="already exists"):
        write_torch_model(again, paths[1], to)
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = torch.load(paths[0], weights_only=True)["state_dict"]
    expected = to_torch(tensors, architecture, MIT if to == "mit" else MMACTION2)
    assert list(state) == list(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name].numpy(), value, strict=True)
    assert sum(value.dtype == torch.int64 for value in state.values()) == sum(
        name.endswith("num_batches_tracked") for name in state
    )
    torch.save({"state_dict": state}, tmp_path / "by_torch_1x1x16.pth")
    theirs = load_model(str(tmp_path / "by_torch_1x1x16.pth"))
    assert all(np.array_equal(theirs.tensors[name], tensors[name]) for name in tensors)


def test_refuses_to_write_networks_that_mit_lacks(tmp_path):
    architecture = Architecture("resnet18", 2, 8, width=8, shift="past_first")
    model = Model(architecture, Preprocessing(), ["a", "b"], {})
    with pytest.raises(UserError, match="MIT shifts future_first"):
        write_torch_model(model, str(tmp_path / "x.pth"), "mit")
    with pytest.raises(UserError, match="mmaction2 shifts future_first"):
        write_torch_model(replace(model), str(tmp_path / "x.pth"), "mmaction2")
    assert not (tmp_path / "x.pth").exists()
