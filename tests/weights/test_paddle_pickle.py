"""Reads real Paddle files, all protocols and all spellings of an array."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import numpy as np
import pytest

from tsm_jax.weights.paddle_pickle import NAME_TABLE, read_paddle

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "big_endian": np.arange(5, dtype=">f4"),
    "half": np.arange(4, dtype=np.float16),
    "integers": np.array([-1, 2**40], np.int64),
    "truth": np.array([True, False]),
    "scalar": np.array(3.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "long": np.arange(300_000, dtype=np.float32),  # outside pickle's frames
    "complex": np.array([1 + 2j]),
}


def write(path, content, protocol):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("name", ["tiny_protocol2.pdparams", "tiny_protocol4.pdparams"])
def test_real_state_dict(goldens, name):
    content = read_paddle(goldens / name)
    with np.load(goldens / "tiny_expected.npz") as expected:
        assert list(content) == list(expected)
        for key in expected:
            assert content[key].dtype == np.float32
            np.testing.assert_array_equal(content[key], expected[key], strict=True)
    assert NAME_TABLE not in content


def test_real_state_dict_of_numpy_2(goldens):
    content = read_paddle(goldens / "paddle3_state_dict.pdparams")
    values = np.linspace(-1, 1, 108, dtype=np.float32)
    np.testing.assert_array_equal(content["0.weight"], values.reshape(4, 3, 3, 3))


def test_real_float16(goldens):
    content = read_paddle(goldens / "tiny_fp16_plain_dict.pdparams")
    with np.load(goldens / "tiny_expected.npz") as expected:
        for key in expected:
            assert content[key].dtype == np.float16
            np.testing.assert_allclose(content[key], expected[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("version", [2, 3])
def test_real_bfloat16_is_uint16(goldens, version):
    content = read_paddle(goldens / f"paddle{version}_bfloat16.pdparams")
    bits = content["0.bias"].astype(np.uint32) << 16
    assert content["0.bias"].dtype == np.uint16
    np.testing.assert_allclose(bits.view(np.float32), np.linspace(-1, 2, 4), rtol=2**-7)


@pytest.mark.parametrize("version, protocol", [(2, 2), (2, 4), (3, 4)])
def test_real_pairs_of_name_and_array_are_unwrapped(goldens, version, protocol):
    path = goldens / f"paddle{version}_nested_protocol{protocol}.pdparams"
    content = read_paddle(path)
    assert content["epoch"] == 3
    assert content["best"][1:] == [0.5, "top1", None, True]
    np.testing.assert_array_equal(content["model"]["0.weight"], content["best"][0])
    assert content["model"]["0.weight"].shape == (4, 3, 3, 3)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("protocol", [2, 4])
def test_real_numpy_values(goldens, version, protocol):
    content = read_paddle(goldens / f"paddle{version}_numpy_protocol{protocol}.pdparams")
    assert content["empty"].shape == (0, 3)
    assert content["scalar"] == np.float32(3) and content["scalar"].dtype == np.float32
    np.testing.assert_array_equal(content["fortran"], [[0, 1, 2], [3, 4, 5]])
    assert content["tensor"].shape == (4,)


@pytest.mark.parametrize("version", [2, 3])
def test_real_optimizer_state(goldens, version):
    content = read_paddle(goldens / f"paddle{version}_scheduler.pdopt")
    assert content["LR_Scheduler"]["last_epoch"] == 1
    assert content["conv2d_0.w_0_velocity_0"].shape == (4, 3, 3, 3)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_and_kind_of_array(tmp_path, protocol):
    content = read_paddle(write(tmp_path / "all.pdparams", ARRAYS, protocol))
    assert list(content) == list(ARRAYS)
    for key, expected in ARRAYS.items():
        np.testing.assert_array_equal(content[key], expected)
        assert content[key].shape == expected.shape
        assert content[key].dtype == expected.dtype.newbyteorder("=")
        assert content[key].flags.writeable and content[key].flags.aligned


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values(tmp_path, protocol):
    values = [
        0,
        -1,
        300,
        2**31,
        -(2**63),
        1.5,
        "x" * 1000,
        "ünïcode",
        None,
        True,
        (),
        (1, 2),
        b"ab",
    ]
    content = {"list": values, "inner": OrderedDict(a=1), "bytes": b"\x00\xff" * 400}
    assert read_paddle(write(tmp_path / "f", content, protocol)) == content


@pytest.mark.parametrize("protocol", [2, 4])
def test_one_array_under_two_names(tmp_path, protocol):
    array = np.arange(1000, dtype=np.float32)
    content = read_paddle(write(tmp_path / "f", {"a": array, "b": array}, protocol))
    np.testing.assert_array_equal(content["a"], array)
    assert content["b"] is content["a"]


@pytest.mark.parametrize("count", [2, 100])
def test_bytes_of_python_2(tmp_path, array_pickle, count):
    """Python 2 wrote the bytes of arrays, and all text, as `str`."""
    values = np.arange(count, dtype="<f4")
    raw = pickle.BINSTRING + values.nbytes.to_bytes(4, "little") + values.tobytes()
    (tmp_path / "f").write_bytes(
        array_pickle(shape=[count], data=raw, text=lambda text: b"U" + bytes([len(text)]) + text)
    )
    np.testing.assert_array_equal(read_paddle(tmp_path / "f")["x"], values)
