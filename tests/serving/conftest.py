"""Services of their own processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from service_client import Service


@pytest.fixture(scope="session")
def start_service(exported):
    pytest.importorskip("starlette", reason="the extra serve is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    services = []

    def start(folder: Path, *options: str) -> Service:
        services.append(Service(exported, folder, *options))
        return services[-1]

    yield start
    for service in services:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


@pytest.fixture(scope="session")
def service(start_service, tmp_path_factory):
    """One for all tests that leave it as it was."""
    options = ["--idle_seconds", "0.6", "--max_upload_mb", "1", "--max_pixels", "20000"]
    return start_service(tmp_path_factory.mktemp("service"), *options, "--decoders", "1")
