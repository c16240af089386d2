"""Services in their own processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from service_client import Service

from tsm_jax.exporting.stream_writer import export_stream


@pytest.fixture(scope="session")
def start_service(exported):
    pytest.importorskip("starlette", reason="the extra serve is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    services = []

    def start(folder: Path, *options: str, model: Path = exported, answers: bool = True) -> Service:
        services.append(Service(model, folder, *options, answers=answers))
        return services[-1]

    yield start
    for service in services:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


@pytest.fixture(scope="session")
def service(start_service, tmp_path_factory):
    """A service shared by all tests that leave it unchanged."""
    options = ["--idle_seconds", "0.6", "--max_upload_mb", "1", "--max_pixels", "20000"]
    return start_service(tmp_path_factory.mktemp("service"), *options, "--decoders", "1")


@pytest.fixture(scope="session")
def exported_stream(make_model, formats, tmp_path_factory):
    if "onnx" not in formats:
        pytest.skip("onnx is not installed")
    folder = tmp_path_factory.mktemp("inference") / "live"
    export_stream(make_model(shift="past_only"), str(folder), frame_rate=50, formats=["onnx"])
    return folder


@pytest.fixture(scope="session")
def stream_service(start_service, exported_stream, tmp_path_factory):
    options = ["--idle_seconds", "60", "--max_frame_kb", "8", "--max_pixels", "20000"]
    options += ["--max_streams", "2", "--decoders", "1"]
    return start_service(tmp_path_factory.mktemp("service"), *options, model=exported_stream)
