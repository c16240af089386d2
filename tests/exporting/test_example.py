"""Tests that example.py of an exported folder predicts the same as the package, without it."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys

import av
import numpy as np
import pytest

import tsm_jax
from tsm_jax.data import moving_shapes

# Modules of the packages that the README says to install; Pillow is PIL, PyAV is av.
ALONE = ("av", "numpy", "PIL")
ENGINES = {"onnx": ("onnxruntime",), "stablehlo": ("jax", "jaxlib", "flatbuffers", "ml_dtypes")}


@pytest.fixture
def folder(exported, tmp_path):
    """Returns a function that copies the exported folder with one graph and other preprocessing."""

    def make(graph, protocol="test", short_side=36):
        copy = shutil.copytree(exported, tmp_path / "TSM")
        for path in copy.glob("model.onnx" if graph == "stablehlo" else "*.stablehlo"):
            path.unlink()
        config = json.loads((copy / "config.json").read_text())
        config["preprocessing"].update(protocol=protocol, short_side=short_side)
        (copy / "config.json").write_text(json.dumps(config))
        return copy

    return make


@pytest.fixture(scope="module")
def shapes(film, tmp_path_factory):
    """Videos: wide, upright, one that needs no resizing, one with fewer than T frames."""
    directory = tmp_path_factory.mktemp("shapes")
    sizes = ((46, 70, 21), (90, 50, 9), (36, 48, 13), (64, 64, 2))
    paths = []
    for height, width, count in sizes:
        drawn = moving_shapes.draw_clip(1, np.random.default_rng(0))
        frames = np.resize(drawn, (count, height, width, 3))
        paths.append(str(film(directory / f"{height}x{width}.mp4", frames)))
    return paths


@pytest.mark.parametrize("short_side", [36, 41])
@pytest.mark.parametrize("protocol", ["test", "paddle_predict"])
def test_it_prints_the_predictions_of_the_package(
    folder, shapes, capsys, monkeypatch, protocol, short_side
):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    copy = folder("onnx", protocol, short_side)
    predictor = tsm_jax.load(str(copy), engine="onnxruntime")
    monkeypatch.setattr(sys, "argv", ["example.py", *shapes])
    example = runpy.run_path(str(copy / "example.py"), run_name="__main__")
    printed = capsys.readouterr().out
    for path, answer in zip(
        shapes, re.split(r"^(?=/)", printed, flags=re.MULTILINE)[1:], strict=True
    ):
        clip = np.stack([example["prepare"](frame) for frame in example["decode"](path)])
        np.testing.assert_array_equal(clip, predictor.read(path).reshape(clip.shape))
        found = re.findall(r"\d\. (.+) \(class (\d+)\)  ([\d.]+)", answer)
        expected = predictor.predict(path)
        assert [(label, int(k)) for label, k, _ in found] == [(p.label, p.index) for p in expected]
        scores = [float(score) for _, _, score in found]
        np.testing.assert_allclose(scores, [p.score for p in expected], rtol=0, atol=1e-4)


@pytest.mark.parametrize("graph", ["onnx", "stablehlo"])
def test_it_needs_only_the_packages_of_the_readme(folder, shapes, formats, run_with_only, graph):
    if graph not in formats:
        pytest.skip(f"{graph} cannot be exported here")
    copy = folder(graph)
    code = f"""
import runpy
sys.argv = ["example.py", {shapes[0]!r}]
runpy.run_path({str(copy / "example.py")!r}, run_name="__main__")
"""
    result = run_with_only(code, *ALONE, *ENGINES[graph], "opt_einsum", "scipy")
    assert result.returncode == 0, result.stderr
    engine = {"onnx": "onnxruntime", "stablehlo": "jax"}[graph]
    best = tsm_jax.load(str(copy), engine=engine).predict(shapes[0])[0]
    assert f"1. {best.label} (class {best.index})  {best.score:.4f}" in result.stdout


@pytest.mark.parametrize("damage", ["cut", "missing", "text", "sound"])
def test_a_damaged_video_gives_a_one_line_error(folder, shapes, tmp_path, monkeypatch, damage):
    path = tmp_path / "damaged.mp4"
    match damage:
        case "cut":
            with open(shapes[0], "rb") as whole:
                path.write_bytes(whole.read()[:100])
        case "text":
            path.write_text("not a video")
        case "sound":
            path = tmp_path / "sound.wav"
            with av.open(str(path), "w") as container:
                stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
                frame.rate = 8000
                container.mux([*stream.encode(frame), *stream.encode(None)])
    monkeypatch.setattr(sys, "argv", ["example.py", str(path)])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(folder("onnx") / "example.py"), run_name="__main__")
    assert re.fullmatch(f"cannot decode {path}: .+", str(exit_.value.code))


def test_several_views_are_refused(folder, monkeypatch):
    copy = folder("onnx", "mit_three_crop")
    with pytest.raises(SystemExit, match="mit_three_crop takes several views"):
        runpy.run_path(str(copy / "example.py"))
