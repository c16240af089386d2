"""Model directories: complete or not there, and every damage is told."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tsm_jax.errors import UserError
from tsm_jax.models.architecture import Architecture
from tsm_jax.weights import model_directory
from tsm_jax.weights.model_directory import (
    Model,
    Preprocessing,
    check_tensors,
    read_model_directory,
    write_model_directory,
)


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 3, 4, 5)).astype(np.float32).transpose(2, 3, 1, 0)
    return Model(
        Architecture(50, 3, 16, shift="future_first", shift_fraction="1/8", shift_every=2),
        Preprocessing(crop_size=48, short_side=64, protocol="paddle_predict"),
        ["a", "b c", "ä"],
        {"x.kernel": kernel, "x.bias": rng.normal(size=3).astype(np.float32)},
        {"source": "x.pdparams"},
    )


@pytest.fixture
def directory(model, tmp_path):
    path = tmp_path / "model"
    write_model_directory(model, str(path))
    return path


def test_reads_back_what_was_written(model, directory):
    again = read_model_directory(str(directory))
    for name in model.tensors:
        np.testing.assert_array_equal(again.tensors[name], model.tensors[name])
    assert replace(again, tensors={}) == replace(model, tensors={})
    assert sorted(path.name for path in directory.iterdir()) == [
        "config.json",
        "labels.txt",
        "model.safetensors",
    ]


def test_others_may_read_it(directory):
    for path in (directory, *directory.iterdir()):
        assert path.stat().st_mode & 0o044 == 0o044


def test_never_overwrites(model, directory):
    with pytest.raises(UserError, match="exists already"):
        write_model_directory(model, str(directory))


def test_a_failed_write_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(model_directory, "_write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_model_directory(model, str(tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []


def change_config(directory, change):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").write_text("{"), "cannot read"),
        (lambda d: (d / "config.json").write_text("[]"), "is no tsm_jax model"),
        (lambda d: change_config(d, lambda c: c.update(format_version=9)), "format version"),
        (lambda d: change_config(d, lambda c: c["architecture"].pop("shift")), "shift"),
        (lambda d: change_config(d, lambda c: c.pop("preprocessing")), "preprocessing"),
        (lambda d: (d / "labels.txt").write_text("a\n"), "1 labels"),
        (lambda d: (d / "labels.txt").unlink(), "labels.txt"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 100), "model.safetensors"),
    ],
)
def test_damage_is_told_in_one_line(directory, damage, message):
    damage(directory)
    with pytest.raises(UserError, match=message) as error:
        read_model_directory(str(directory))
    assert str(directory) in str(error.value)


def test_tensors_must_be_exactly_those_of_the_network():
    expected = {f"t{i}": (2,) for i in range(6)}
    given = {f"t{i}": np.zeros(3 if i == 1 else 2) for i in range(1, 7)}
    with pytest.raises(UserError, match=r"t0 is missing, t6 is unexpected, t1 is \(3,\) instead"):
        check_tensors(given, expected, "x")
    check_tensors({name: np.zeros(2) for name in expected}, expected, "x")
