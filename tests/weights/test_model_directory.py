"""Model directories are complete or absent, and all damage is reported."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace

import numpy as np
import pytest

from tsm_jax.data.protocols import Preprocessing
from tsm_jax.errors import UserError
from tsm_jax.models.architecture import Architecture
from tsm_jax.weights import model_directory
from tsm_jax.weights.model_directory import (
    Model,
    check_tensors,
    read_model_directory,
    write_model_directory,
)


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(2, 3, 4, 5)).astype(np.float32).transpose(2, 3, 1, 0)
    return Model(
        Architecture("resnet50", 3, 16, shift="future_first", shift_fraction="1/8", shift_every=2),
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


def test_files_are_readable_by_others(directory):
    for path in (directory, *directory.iterdir()):
        assert path.stat().st_mode & 0o044 == 0o044


def test_never_overwrites(model, directory):
    with pytest.raises(UserError, match="already exists"):
        write_model_directory(model, str(directory))


def test_a_failed_write_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(model_directory, "write_json", fail)
    with pytest.raises(UserError, match=r"cannot write .*model: disk full"):
        write_model_directory(model, str(tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["a", "b"]}, "has 2 labels, but the model has 3 classes"),
        ({"tensors": {"x": np.zeros(3)}}, "x is float64: it must be float32"),
        ({"tensors": {"x": np.array([1, np.inf], np.float32)}}, "x contains values that are not"),
    ],
)
def test_unreadable_models_are_not_written(model, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        write_model_directory(replace(model, **changes), str(tmp_path / "model"))
    assert list(tmp_path.iterdir()) == []


def test_provenance_contains_no_folders(model):
    provenance = {
        "trained_in": "/home/ann/runs/own",
        "recipe": {"init_from": "https://ann:secret@host/x.pdparams?token=1", "epochs": 2},
        "lists": ["/data/train.list", "~/val.list", "data/own/train.list", "file:///home/ann/x"],
    }
    assert replace(model, provenance=provenance).provenance == {
        "trained_in": "own",
        "recipe": {"init_from": "https://host/x.pdparams", "epochs": 2},
        "lists": ["train.list", "val.list", "data/own/train.list", "x"],
    }


def change_config(directory, change):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").write_text("{"), "cannot read"),
        (
            lambda d: (d / "config.json").write_text("[]"),
            "does not describe a tsm_jax model",
        ),
        (
            lambda d: change_config(d, lambda c: c.update(format_version=9)),
            "version 9, but this tsm_jax reads",
        ),
        (lambda d: change_config(d, lambda c: c["architecture"].pop("shift")), "shift"),
        (lambda d: change_config(d, lambda c: c.pop("preprocessing")), "preprocessing"),
        (lambda d: (d / "labels.txt").write_text("a\n"), "1 labels"),
        (lambda d: (d / "labels.txt").unlink(), "labels.txt"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 100), "model.safetensors"),
    ],
)
def test_damage_is_a_one_line_error(directory, damage, message):
    damage(directory)
    with pytest.raises(UserError, match=message) as error:
        read_model_directory(str(directory))
    assert str(directory) in str(error.value)


WRONG_VALUES = [
    *(("architecture.backbone", value) for value in ("50", "resnet19", 50, None, [])),
    *(("architecture.num_classes", value) for value in (0, -1, True, "3", 10**9)),
    *(("architecture.num_segments", value) for value in (0, "8", 8.0, True, [8], 10**7)),
    *(("architecture.width", value) for value in (0, -24, 7, 24.0, 10**6)),
    *(("architecture.shift", value) for value in ("sideways", 5, None)),
    *(("architecture.shift_fraction", value) for value in ("1/0", "2/1", 0.125)),
    *(("architecture.shift_every", value) for value in (0, True, 3, "1")),
    *(("preprocessing.crop_size", value) for value in ("48", 0, 31, 48.0, 65, 10**6, None)),
    *(("preprocessing.short_side", value) for value in (0, 47, 10**7, "x")),
    *(("preprocessing.protocol", value) for value in ("nope", 7, ["test"], None)),
    *(("provenance.metrics", value) for value in ("x", {"top1": "high"}, {"top1": 1})),
    ("provenance.recipe", 5),
]


@pytest.mark.parametrize(("key", "value"), WRONG_VALUES)
def test_the_error_for_a_wrong_value_names_its_key(directory, key, value):
    part, name = key.split(".")
    change_config(directory, lambda config: config[part].update({name: value}))
    with pytest.raises(UserError, match=rf"config.json: .*{name}") as error:
        read_model_directory(str(directory))
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["architecture"].update(blocks=2), "architecture.blocks is unknown"),
        (lambda c: c["architecture"].update({"\x1b[31m": 2}), r"architecture.\\x1b\[31m is"),
        (lambda c: c.update(architecture=[50]), r"architecture is \[50\]: it must be an object"),
        (lambda c: c.update(provenance="x"), "provenance is 'x': it must be an object"),
        (lambda c: c.update(format_version=True), "version True, which is not"),
        (lambda c: c.update(format_version=1.0), "version 1.0, which is not"),
        (lambda c: c["provenance"].update(x=float("nan")), "NaN is not a JSON number"),
        (
            lambda c: c["architecture"].update(num_segments=1, shift_fraction="1/num_segments"),
            "num_segments is 1: a shift by 1/num_segments",
        ),
    ],
)
def test_a_wrong_description_is_refused(directory, change, message):
    change_config(directory, change)
    with pytest.raises(UserError, match=message):
        read_model_directory(str(directory))


def test_provenance_that_cannot_be_written_as_json_is_refused(directory):
    path = directory / "config.json"
    for value in ("1e999", '"\\ud800"'):
        path.write_text(path.read_text().replace('"x.pdparams"', value))
        with pytest.raises(UserError, match="config.json: provenance: "):
            read_model_directory(str(directory))
        path.write_text(path.read_text().replace(value, '"x.pdparams"'))


def test_deeply_nested_json_is_refused(directory):
    (directory / "config.json").write_text('{"format_version":' + "[" * 10**5 + "]" * 10**5 + "}")
    with pytest.raises(UserError, match="nested too deeply"):
        read_model_directory(str(directory))


def safetensors(header, values=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + values


def tensor(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


NAN = np.array([1, np.nan], np.float32).tobytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<Q", 2**63) + b"{}", "header too large"),
        (struct.pack("<Q", 99_000_000) + b" " * 1000, "header length"),
        (safetensors(b"[" * 200_000), "header"),
        (safetensors({"a": tensor(), "b": tensor()}, b"\0" * 8), "offset"),
        (safetensors({"a": tensor(data_offsets=[0, 10**15])}, b"\0" * 8), "offset"),
        (safetensors({"a": tensor(shape=[2**40, 2**40])}, b"\0" * 8), "overflow"),
        (safetensors({"a": tensor(shape=[0, 2**62], data_offsets=[0, 0])}), "too big"),
        (safetensors({"a": tensor(dtype="F16", shape=[4])}, b"\0" * 8), "a is F16: it must be F32"),
        (safetensors({"a": tensor(dtype="BF16", shape=[4])}, b"\0" * 8), "a is BF16"),
        (safetensors({"a": tensor(dtype="I32")}, b"\0" * 8), "a is I32"),
        (safetensors({"a": tensor(dtype="F8_E4M3", shape=[8])}, b"\0" * 8), "a is F8_E4M3"),
        (safetensors({"a": tensor()}, NAN), "a contains values that are not finite"),
        (safetensors({"a\x1b[31m": tensor()}, NAN), r"a\\x1b\[31m contains values"),
        (b"", "header too small"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_weights_are_a_one_line_error(directory, content, message):
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=rf"model.safetensors.*{message}") as error:
        read_model_directory(str(directory))
    assert str(error.value).isprintable()


def test_weights_in_a_pipe_do_not_block(directory):
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / "model.safetensors")
    with pytest.raises(UserError, match="not a regular file"):
        read_model_directory(str(directory))


def test_tensors_must_match_the_network_exactly():
    expected = {f"t{i}": (2,) for i in range(6)}
    given = {f"t{i}": np.zeros(3 if i == 1 else 2) for i in range(1, 7)}
    with pytest.raises(
        UserError, match=r"t0 is missing, t6 is unexpected, t1 has shape \(3,\) instead"
    ):
        check_tensors(given, expected, "x")
    check_tensors({name: np.zeros(2) for name in expected}, expected, "x")
