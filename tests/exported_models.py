"""A small network with weights that differ from the identity, exported once; a few videos."""

from __future__ import annotations

from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tsm_jax.data import moving_shapes
from tsm_jax.data.protocols import Preprocessing
from tsm_jax.deploy.artifact import read_artifact
from tsm_jax.exporting.writer import export_model
from tsm_jax.models.architecture import Architecture
from tsm_jax.models.network import Network
from tsm_jax.models.tsm import TSM
from tsm_jax.weights.model_directory import Model


def _tensors(architecture: Architecture) -> dict[str, np.ndarray]:
    network = Network(lambda: TSM(**asdict(architecture), dropout=0.0))
    rng = np.random.default_rng(0)

    def draw(name, shape):
        match name.rsplit(".", 1)[1]:
            case "scale" | "var":
                return rng.uniform(0.5, 1.5, shape)
            case "bias" | "mean":
                return rng.normal(0, 0.1, shape)
            case _:
                return rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)

    shapes = {**network.param_shapes, **network.batch_stat_shapes}
    return {name: draw(name, shape).astype(np.float32) for name, shape in shapes.items()}


def _model(protocol: str = "test", **architecture) -> Model:
    """A model of 5 classes, 4 segments and 32 pixels, unless given others."""
    values = {
        "backbone": "resnet18",
        "num_classes": 5,
        "num_segments": 4,
        "width": 8,
        **architecture,
    }
    built = Architecture(**values)
    labels = [f"class number {k}" for k in range(built.num_classes)]
    return Model(
        built, Preprocessing(32, 36, protocol), labels, _tensors(built), {"source": "test"}
    )


@pytest.fixture(scope="session")
def make_model():
    return _model


@pytest.fixture(scope="session")
def model():
    return _model()


@pytest.fixture(scope="session")
def formats():
    """The formats that can be exported on this machine."""
    onnx = find_spec("onnx") and find_spec("onnxruntime")
    return ("stablehlo", "onnx") if onnx else ("stablehlo",)


@pytest.fixture(scope="session")
def exported(model, formats, videos, tmp_path_factory):
    """The path of the exported model, with bfloat16."""
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    folder = tmp_path_factory.mktemp("inference") / "TSM"
    films = [str(videos / "0.mp4"), str(videos / "1.mp4")]
    export_model(
        model, str(folder), videos=films, formats=formats, precisions=("float32", "bfloat16")
    )
    return folder


@pytest.fixture(scope="session")
def artifact(exported):
    return read_artifact(str(exported))


@pytest.fixture(scope="session")
def clips():
    """uint8[3, 4, 32, 32, 3]."""
    return np.random.default_rng(1).integers(0, 256, (3, 4, 32, 32, 3), np.uint8)


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A folder with five videos and a broken one: `2_broken.mp4`."""
    folder = tmp_path_factory.mktemp("videos")
    for i in (0, 1, 3, 4, 5):
        write_film(folder / f"{i}.mp4", moving_shapes.draw_clip(i, np.random.default_rng(i)))
    (folder / "2_broken.mp4").write_bytes((folder / "0.mp4").read_bytes()[:100])
    return folder


def write_film(path: Path, frames: np.ndarray, rate: int = 24) -> Path:
    """Encodes uint8[N, H, W, 3] with even H and W."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"qp": "4"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            yuv = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(yuv, format="yuv420p")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def film():
    return write_film
