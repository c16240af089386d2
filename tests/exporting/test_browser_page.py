"""Tests of the page in headless Chromium, with a fake camera that shows a moving shape."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from tsm_jax.data.moving_shapes import draw_clip
from tsm_jax.errors import UserError
from tsm_jax.exporting import browser
from tsm_jax.exporting.stream_writer import export_stream

DEMO = Path(__file__).parents[2] / "demo"
PAGE = Path(browser.__file__).parent / "page"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
NODE = shutil.which("node")
MODULES = DEMO / "node_modules"

needs_modules = pytest.mark.skipif(
    NODE is None or not (MODULES / "puppeteer-core").is_dir(),
    reason="npm has not installed demo/: npm ci --prefix demo",
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def write_y4m(path: Path, frames: np.ndarray, rate: int = 24) -> Path:
    """Writes frames, uint8 `[N, H, W, 3]`, in the format of Chromium's fake camera."""
    frames = np.stack([cv2.resize(frame, (480, 360)) for frame in frames])
    with open(path, "wb") as file:
        file.write(f"YUV4MPEG2 W480 H360 F{rate}:1 Ip A1:1 C420jpeg\n".encode())
        for frame in frames:
            file.write(b"FRAME\n" + cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420).tobytes())
    return path


def visit(folder: Path, *arguments: str) -> dict:
    assert NODE is not None and CHROMIUM is not None
    done = subprocess.run(
        [NODE, DEMO / "test" / "visit.mjs", CHROMIUM, folder, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def page(make_model, tmp_path_factory):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnx", reason="onnx is not installed")
    folder = tmp_path_factory.mktemp("inference") / "page"
    model = make_model(shift="past_only")
    export_stream(model, str(folder), frame_rate=8, formats=("onnx",), browser=True)
    return folder


@needs_modules
def test_the_page_in_the_package_is_built_from_its_source(tmp_path):
    assert NODE is not None
    subprocess.run([NODE, DEMO / "build.mjs", tmp_path], check=True, timeout=120)
    built = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert built == {path.name: path.read_bytes() for path in PAGE.iterdir()}


@pytest.mark.slow
@needs_modules
@needs_chromium
def test_it_classifies_a_camera_and_contacts_no_other_host(page, tmp_path):
    camera = write_y4m(tmp_path / "a.y4m", draw_clip(1, np.random.default_rng(0)))
    result = visit(page, "--camera", str(camera), "--seconds", "4")
    assert result["answers"] and result["answers"][0][1].startswith("class number ")
    assert result["foreign"] == []
    assert [error for error in result["errors"] if "No available adapters" not in error] == []
    assert "one thread. Using more threads requires a server that sends" in result["engine"]
    isolated = visit(page, "--camera", str(camera), "--seconds", "1", "--isolated")
    assert "more threads" not in isolated["engine"] and isolated["message"] == ""


@pytest.mark.slow
@needs_modules
@needs_chromium
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "No camera found"),
        ({"version": 3}, "export version 3, but this page supports versions up to 2"),
        ({"kind": "clips"}, "exported for whole clips, not for streams"),
    ],
)
def test_the_page_reports_errors_in_one_line(page, tmp_path, change, message):
    folder = tmp_path / "page"
    shutil.copytree(page, folder)
    config = json.loads((folder / "config.json").read_text())
    config["export"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    result = visit(folder, "--seconds", "1")
    assert message in result["message"] and "\n" not in result["message"]
    assert result["foreign"] == []


def test_without_npm_the_error_names_what_is_missing(make_model, monkeypatch, tmp_path):
    monkeypatch.setattr(browser, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    with pytest.raises(
        UserError, match="needs onnxruntime-web 1.30.0, which is downloaded with npm"
    ):
        browser.add_page(str(tmp_path))
    with pytest.raises(UserError, match="add onnx to --formats"):
        export_stream(
            make_model(shift="past_only"),
            str(tmp_path / "x"),
            frame_rate=5,
            formats=("stablehlo",),
            browser=True,
        )
