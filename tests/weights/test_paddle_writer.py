"""Writes files that read back the same and are never seen incomplete."""

from __future__ import annotations

import os
import pickle
import pickletools

import numpy as np
import pytest

from tsm_jax.errors import UserError
from tsm_jax.weights.paddle_names import from_paddle, to_paddle
from tsm_jax.weights.paddle_pickle import NAME_TABLE, read_paddle
from tsm_jax.weights.pickle_writers import write_paddle

TENSORS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "column major": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "strided": np.arange(12, dtype=np.float32)[::3],
    "big endian": np.arange(3, dtype=">f4"),
    "half": np.ones(3, np.float16),
    "bfloat16": np.array([0x3F80], np.uint16),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "truth": np.array([True, False]),
    "ünïcode": np.array([-(2**40)]),
}


def test_round_trip(tmp_path):
    write_paddle(tmp_path / "f.pdparams", TENSORS, {"matrix": "conv2d_0.w_0"})
    content = read_paddle(tmp_path / "f.pdparams")
    assert list(content) == list(TENSORS)
    for key, tensor in TENSORS.items():
        expected = tensor.astype(tensor.dtype.newbyteorder("="))
        np.testing.assert_array_equal(content[key], expected, strict=True)
    names = pickle.loads((tmp_path / "f.pdparams").read_bytes())[NAME_TABLE]
    assert names == {key: key for key in TENSORS} | {"matrix": "conv2d_0.w_0"}
    assert os.listdir(tmp_path) == ["f.pdparams"]


def test_pythons_own_pickle_reads_it(tmp_path):
    """As `paddle.load` does: `pickle.load(file, encoding="latin1")`."""
    write_paddle(tmp_path / "f", TENSORS)
    with (tmp_path / "f").open("rb") as file:
        content = pickle.load(file, encoding="latin1")
    assert content.pop(NAME_TABLE) == {key: key for key in TENSORS}
    for key, tensor in TENSORS.items():
        np.testing.assert_array_equal(content[key], tensor)


def test_old_numpy_has_every_global(tmp_path):
    """NumPy before 2.0 has no `numpy._core`; Paddle 2 runs on such a NumPy."""
    write_paddle(tmp_path / "f", {"x": np.ones(2, np.float32)})
    text = [
        argument
        for opcode, argument, _ in pickletools.genops((tmp_path / "f").read_bytes())
        if opcode.name.endswith("UNICODE")
    ]
    assert "numpy.core.multiarray" in text and "numpy._core.multiarray" not in text


def test_same_content_as_paddle_wrote(tmp_path, goldens):
    """A real file that is read and rewritten unpickles to the same content."""
    original = pickle.loads((goldens / "tiny_protocol4.pdparams").read_bytes())
    content = read_paddle(goldens / "tiny_protocol4.pdparams")
    write_paddle(tmp_path / "f", content, original[NAME_TABLE])
    copy = pickle.loads((tmp_path / "f").read_bytes())
    assert list(copy) == list(original)
    assert copy.pop(NAME_TABLE) == original.pop(NAME_TABLE)
    for key in original:
        np.testing.assert_array_equal(copy[key], original[key], strict=True)


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_whole_network_round_trip_is_bitwise(tmp_path, make_tensors, backbone):
    tensors = make_tensors(backbone)
    write_paddle(tmp_path / "first", tensors)
    weights, architecture = from_paddle(read_paddle(tmp_path / "first"))
    back, table = to_paddle(weights, architecture)
    write_paddle(tmp_path / "second", back, table)
    content = read_paddle(tmp_path / "second")
    assert list(content) == list(tensors)
    for key in tensors:
        assert content[key].tobytes() == tensors[key].tobytes()
    assert table["backbone.res2a.conv0._conv.weight"] == "res2a_branch2a_weights"


def test_an_existing_file_is_replaced(tmp_path):
    write_paddle(tmp_path / "f", {"x": np.zeros(5000, np.float32)})
    with (tmp_path / "f").open("rb") as opened_before:
        write_paddle(tmp_path / "f", {"x": np.ones(2, np.float32)})
        # A reader of the old file keeps reading the old file.
        assert len(opened_before.read()) > 20_000
    np.testing.assert_array_equal(read_paddle(tmp_path / "f")["x"], [1, 1])


def test_a_failure_keeps_the_old_file(tmp_path):
    write_paddle(tmp_path / "f", {"x": np.ones(2, np.float32)})
    before = (tmp_path / "f").read_bytes()
    with pytest.raises(ValueError, match="second: Paddle files do not support the dtype object"):
        write_paddle(tmp_path / "f", {"x": np.ones(2), "second": np.array([object()])})
    assert (tmp_path / "f").read_bytes() == before
    assert os.listdir(tmp_path) == ["f"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file/f: "):
        write_paddle(tmp_path / "file" / "f", {})


def test_paddle_loads_it(tmp_path, goldens):
    paddle = pytest.importorskip("paddle")
    content = read_paddle(goldens / "tiny_protocol4.pdparams")
    names = pickle.loads((goldens / "tiny_protocol4.pdparams").read_bytes())[NAME_TABLE]
    write_paddle(tmp_path / "f.pdparams", content, names)
    loaded = paddle.load(str(tmp_path / "f.pdparams"))
    assert list(loaded) == list(content)
    for key in content:
        assert isinstance(loaded[key], paddle.Tensor) and loaded[key].name == names[key]
        np.testing.assert_array_equal(loaded[key].numpy(), content[key])


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_we_read_what_paddle_saves(tmp_path, protocol):
    paddle = pytest.importorskip("paddle")
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4))
    state = layer.state_dict()
    paddle.save(state, str(tmp_path / "f"), protocol=protocol)
    paddle.save({"net": state}, str(tmp_path / "nested"), protocol=protocol)
    content = read_paddle(tmp_path / "f")
    nested = read_paddle(tmp_path / "nested")["net"]
    assert list(content) == list(state)
    for key, tensor in state.items():
        np.testing.assert_array_equal(content[key], tensor.numpy())
        np.testing.assert_array_equal(nested[key], tensor.numpy())
