"""Tests that an exported folder is complete, described and checked, or not created at all."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tsm_jax
from tsm_jax import export
from tsm_jax.assemble.recognizer import Recognizer
from tsm_jax.errors import UserError
from tsm_jax.exporting import self_check
from tsm_jax.exporting import writer as exporter
from tsm_jax.exporting.program import make_program
from tsm_jax.exporting.writer import export_model
from tsm_jax.files import sha256
from tsm_jax.models.network import normalize
from tsm_jax.weights.model_directory import read_model_directory, write_model_directory


def description(folder):
    return json.loads((folder / "config.json").read_text())["export"]


def test_config_json_describes_the_folder(exported, model, formats):
    exported_as = description(exported)
    graphs = {"model.stablehlo", "model_bfloat16.stablehlo"}
    graphs |= {"model.onnx"} if "onnx" in formats else set()
    assert exported_as["files"].keys() == graphs | {"model.safetensors"}
    for name, file in exported_as["files"].items():
        assert sha256(str(exported / name)) == file["sha256"]
        assert (exported / name).stat().st_size == file["bytes"]
    assert exported_as["labels"] == model.labels
    assert exported_as["input"]["shape"] == ["N", 4, 32, 32, 3]
    assert exported_as["versions"]["tsm_jax"] == tsm_jax.__version__
    assert {path.name for path in exported.iterdir()} == {
        *exported_as["files"],
        *("config.json", "example.py", "labels.txt", "README.md"),
    }


def test_every_graph_was_checked_on_random_and_real_input(exported, formats):
    checks = description(exported)["self_check"]
    files = {(check["file"], check["input"]) for check in checks}
    names = ["model.stablehlo", "model_bfloat16.stablehlo"]
    names += ["model.onnx"] if "onnx" in formats else []
    assert files == {(name, kind) for name in names for kind in ("random", "real")}
    limits = {"float32": 1e-5, "bfloat16": 2e-2}
    assert all(check["relative_difference"] < limits[check["precision"]] for check in checks)


def test_the_folder_is_also_a_model_directory(exported, model, clips):
    again = read_model_directory(str(exported))
    assert (again.architecture, again.labels) == (model.architecture, model.labels)
    video = np.asarray(normalize(clips))
    expected = Recognizer(model).forward(video)
    np.testing.assert_array_equal(Recognizer(again).forward(video), expected)


def test_the_readme_explains_how_to_run_it(exported, formats):
    text = (exported / "README.md").read_text()
    assert "python -m tsm_jax.predict --model TSM" in text
    engine = "onnxruntime" if "onnx" in formats else "jax flatbuffers"
    assert f"pip install av numpy {engine} pillow\npython example.py VIDEO" in text


@pytest.mark.usefixtures("exported")
def test_the_graphs_take_the_views_of_the_stored_protocol(make_model, formats, videos, tmp_path):
    """Views of a full-size protocol are larger than training crops: 36 px instead of 32."""
    model = make_model("mmaction2_three_crop", backbone="toy")
    write_model_directory(model, str(tmp_path / "model"))
    exported = tmp_path / "TSM"
    export_model(model, str(exported), formats=formats)
    assert description(exported)["input"]["shape"] == ["N", 4, 36, 36, 3]
    assert "uint8 `[N, 4, 36, 36, 3]`" in (exported / "README.md").read_text()
    path = str(videos / "3.mp4")
    expected = tsm_jax.load(str(tmp_path / "model")).predict(path)
    for engine in ("jax", *(["onnxruntime"] if "onnx" in formats else [])):
        actual = tsm_jax.load(str(exported), engine=engine).predict(path)
        assert [p.index for p in actual] == [p.index for p in expected]
        np.testing.assert_allclose([p.score for p in actual], [p.score for p in expected], 1e-4)
    with pytest.raises(
        UserError, match="uses frames of 32 px, but the exported graph accepts only 36"
    ):
        tsm_jax.load(str(exported), protocol="test")


@pytest.mark.parametrize("wrong", ["shift the other way", "a stem of another scale"])
@pytest.mark.usefixtures("exported")  # which skips where nothing can be exported
def test_a_graph_that_differs_from_the_model_is_not_exported(
    make_model, tmp_path, monkeypatch, wrong
):
    model = make_model(backbone="toy")
    if wrong == "a stem of another scale":
        stem = "backbone.stem.conv.kernel"
        other = replace(model, tensors={**model.tensors, stem: model.tensors[stem] * 1.001})
    else:
        reverse = replace(model.architecture, shift="future_first")
        other = replace(model, architecture=reverse)
    program = make_program(other)
    monkeypatch.setattr(exporter, "make_program", lambda model: program)
    with pytest.raises(
        UserError,
        match=r"model.stablehlo is wrong: in jax, the relative difference between its logits",
    ):
        export_model(model, str(tmp_path / "out" / "TSM"), formats=("stablehlo",))
    assert list((tmp_path / "out").iterdir()) == []


def test_invalid_requests_are_refused_early(model, exported, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="already exists"):
        export_model(model, str(exported), formats=("stablehlo",))
    out = str(tmp_path / "TSM")
    with pytest.raises(UserError, match="int8 needs an ONNX graph"):
        export_model(model, out, formats=("stablehlo",), precisions=("float32", "int8"))
    monkeypatch.setattr(
        exporter, "missing", lambda *names: [n for n in names if n == "onnxruntime"]
    )
    with pytest.raises(UserError, match="pip install onnxruntime, or remove onnx from --formats"):
        export_model(model, out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("exported")
def test_the_command(make_model, tmp_path, videos, capsys):
    write_model_directory(make_model(backbone="toy"), str(tmp_path / "model"))
    weights = ["--weights", str(tmp_path / "model"), "--output", str(tmp_path / "TSM")]
    export.main([*weights, "--formats", "stablehlo", "--videos", str(videos / "0.mp4")])
    out = capsys.readouterr().out
    assert "model.stablehlo in jax (float32), real input: largest relative difference" in out
    assert (tmp_path / "TSM" / "model.stablehlo").exists()
    assert not (tmp_path / "TSM" / "model.onnx").exists()
    with pytest.raises(UserError, match="2_broken"):
        export.main([*weights[:3], str(tmp_path / "b"), "--videos", str(videos / "2_broken.mp4")])


@pytest.mark.usefixtures("exported")
def test_int8_agrees_with_float32(model, tmp_path, videos):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    films = [str(videos / f"{i}.mp4") for i in (0, 1, 3, 4, 5)]
    exported = export_model(
        model, str(tmp_path / "TSM"), videos=films, precisions=("float32", "int8")
    )
    found = exported["int8"]
    assert (found["clips"], found["held_out"]) == (1, True)  # the fourth of five
    assert found["agreement"] in (0, 1) and 0 < found["error"] < 0.25
    int8 = [check for check in exported["self_check"] if check["precision"] == "int8"]
    assert {check["file"] for check in int8} == {"model_int8.onnx"}
    assert all(0 < check["relative_difference"] < 0.3 for check in int8)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "TSM").iterdir()}
    assert sizes["model_int8.onnx"] < 0.45 * sizes["model.onnx"]


@pytest.mark.parametrize("engines, wrong", [(["onnxruntime"], 3.0), (["openvino"], np.nan)])
def test_an_inaccurate_int8_graph_is_refused(engines, wrong, monkeypatch):
    expected = np.random.default_rng(0).normal(size=(4, 20))

    class Engine:
        def __init__(self, _, name, precision):
            self.error = wrong if precision == "int8" and name in engines else 0.1

        def logits(self, clip):
            return expected[clip[0]] + self.error * expected[clip[0], ::-1]

    monkeypatch.setattr(self_check, "open_engine", Engine)
    monkeypatch.setattr(self_check, "installed", lambda name: True)
    clips: Any = np.arange(4)[:, None]
    with pytest.raises(UserError, match=r"cannot be quantized well: .* of 4 videos; nothing was"):
        self_check.check_int8(None, clips, True)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(self_check, "installed", lambda name: name not in engines)
    found = self_check.check_int8(None, clips, True)  # pyright: ignore[reportArgumentType]
    assert found == {"clips": 4, "held_out": True, "agreement": 1.0, "error": 0.0}
