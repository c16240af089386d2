"""Writes the exported folder: graphs, tensors, description; checks it; then lets it appear."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

import tsm_jax
from tsm_jax.data import moving_shapes
from tsm_jax.data.protocols import protocol_of
from tsm_jax.deploy.artifact import (
    BFLOAT16_STABLEHLO_FILE,
    CLIPS,
    EXAMPLE_FILE,
    EXPORT_VERSION,
    FEATURES,
    INT8_FILE,
    INT8_WEIGHT_LIMIT,
    LOGITS,
    ONNX_FILE,
    STABLEHLO_FILE,
    VIDEO,
    read_artifact,
)
from tsm_jax.deploy.engine import missing
from tsm_jax.deploy.videos import read_views
from tsm_jax.errors import UserError
from tsm_jax.exporting.program import PLATFORMS, Program, export_stablehlo, make_program
from tsm_jax.exporting.readme import write_readme
from tsm_jax.exporting.self_check import Check, check_export, check_int8
from tsm_jax.files import new_folder, read_json, sha256, write_json
from tsm_jax.models.network import MEAN, STD
from tsm_jax.weights.model_directory import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Model,
    fill_model_directory,
)

_NEEDED = {"stablehlo": ("flatbuffers",), "onnx": ("onnx", "onnxruntime")}
_REAL_CLIPS_IN_CHECK = 2
_EXAMPLE = os.path.join(os.path.dirname(__file__), EXAMPLE_FILE)
_PACKAGES = ("jax", "numpy", "onnx", "onnxruntime", "openvino")


def export_model(
    model: Model,
    output: str,
    *,
    videos: Sequence[str] = (),
    formats: Sequence[str] = ("stablehlo", "onnx"),
    precisions: Sequence[str] = ("float32",),
) -> dict[str, Any]:
    """Exports a model to a folder that appears complete and checked, or not at all.

    Args:
        videos: real ones, for the check (a drawn one takes their place) and to calibrate int8.
        precisions: `float32` always comes; `bfloat16` adds a StableHLO of half the size, `int8` a
            quantized ONNX graph.

    Returns:
        `export` of its config.json.

    Raises:
        UserError: the folder exists, a package is missing, a video cannot be read, or a graph does
            not answer what the model answers.
    """
    check_formats(formats)
    if "int8" in precisions and "onnx" not in formats:
        raise UserError("int8 is an ONNX graph: add onnx to --formats")
    if "int8" in precisions and not videos:
        raise UserError("int8 is calibrated on videos of the kind it will see: give --videos")
    with new_folder(output) as folder:
        clips = _clips(model, videos)
        fill_model_directory(model, folder)
        _write_graphs(model, folder, formats, precisions, clips)
        ports = _ports(model)
        describe(model, folder, ports)  # the engines read the description
        artifact = read_artifact(folder)
        checks = check_export(artifact, model, clips[:_REAL_CLIPS_IN_CHECK], precisions)
        int8 = check_int8(artifact, *_parted(clips)[1:]) if "int8" in precisions else None
        description = describe(model, folder, ports, checks=checks, int8=int8)
        shutil.copyfile(_EXAMPLE, os.path.join(folder, EXAMPLE_FILE))
        write_readme(model, folder, os.path.basename(os.path.abspath(output)), description)
    return description["export"]


def check_formats(formats: Sequence[str]) -> None:
    """Raises a UserError unless what writes and checks these formats is installed."""
    for kind, packages in _NEEDED.items():
        lacking = missing(*packages) if kind in formats else []
        if lacking:
            raise UserError(
                f"writing and checking {kind} needs {' and '.join(lacking)}: pip install"
                f" {' '.join(lacking)}, or leave {kind} out of --formats"
            )


def _clips(model: Model, videos: Sequence[str]) -> np.ndarray:
    """uint8 `[N, T, S, S, 3]` of the videos, or of a drawn one."""
    protocol = protocol_of(model.preprocessing)
    frames = model.architecture.num_segments
    if videos:
        return np.concatenate([read_views(path, protocol, frames) for path in videos])
    drawn = moving_shapes.draw_clip(0, np.random.default_rng(0))
    return protocol.views([drawn[i] for i in protocol.choose_frames(len(drawn), frames)])


def _write_graphs(
    model: Model,
    folder: str,
    formats: Sequence[str],
    precisions: Sequence[str],
    clips: np.ndarray,
) -> None:
    write_program(make_program(model), folder, formats)
    if "bfloat16" in precisions and "stablehlo" in formats:
        coarse = make_program(model, "bfloat16")
        _write(folder, BFLOAT16_STABLEHLO_FILE, export_stablehlo(coarse))
    if "int8" in precisions:
        from tsm_jax.exporting.quantization import quantize

        calibration, *_ = _parted(clips)
        quantize(os.path.join(folder, ONNX_FILE), os.path.join(folder, INT8_FILE), calibration)


def write_program(program: Program, folder: str, formats: Sequence[str]) -> None:
    """Writes the graphs of a program."""
    if "stablehlo" in formats:
        _write(folder, STABLEHLO_FILE, export_stablehlo(program))
    if "onnx" in formats:
        from tsm_jax.exporting.onnx_graph import build_onnx

        _write(folder, ONNX_FILE, build_onnx(program).SerializeToString())


def _parted(clips: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Clips to calibrate int8 on, clips to judge it by, and whether those are others: every fourth
    one, where there are as many."""
    judged = np.arange(len(clips)) % 4 == 3
    return (clips[~judged], clips[judged], True) if judged.any() else (clips, clips, False)


def _write(folder: str, name: str, content: bytes) -> None:
    with open(os.path.join(folder, name), "wb") as file:
        file.write(content)


def _ports(model: Model) -> dict[str, Any]:
    frames = model.architecture.num_segments
    size = protocol_of(model.preprocessing).crop_size
    return {
        "kind": CLIPS,
        "input": {
            "name": VIDEO,
            "dtype": "uint8",
            "shape": ["N", frames, size, size, 3],
            "meaning": "RGB frames after resize and centre crop; the graph normalises them",
        },
        "outputs": {
            LOGITS: {"dtype": "float32", "shape": ["N", model.architecture.num_classes]},
            FEATURES: {
                "dtype": "float32",
                "shape": {
                    "onnx": ["N", frames, "C", "h", "w"],
                    "stablehlo": ["N", frames, "h", "w", "C"],
                },
            },
        },
    }


def describe(
    model: Model,
    folder: str,
    ports: dict[str, Any],
    *,
    checks: Sequence[Check] = (),
    int8: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Adds `export` to config.json, `ports` first; the whole of it is returned."""
    path = os.path.join(folder, CONFIG_FILE)
    description = read_json(path, "the model's description")
    description["export"] = {
        "version": EXPORT_VERSION,
        **ports,
        "normalization_inside": {"mean": MEAN.tolist(), "std": STD.tolist(), "of": "RGB / 255"},
        "platforms_of_stablehlo": list(PLATFORMS),
        "labels": list(model.labels),
        "files": _files(folder),
        "versions": {"tsm_jax": tsm_jax.__version__, **_versions()},
        "self_check": [asdict(check) for check in checks],
        "int8": int8,
        "int8_weight_limit": INT8_WEIGHT_LIMIT,
    }
    write_json(path, description)
    return description


def _files(folder: str) -> dict[str, dict[str, Any]]:
    names = (WEIGHTS_FILE, STABLEHLO_FILE, BFLOAT16_STABLEHLO_FILE, ONNX_FILE, INT8_FILE)
    paths = {name: os.path.join(folder, name) for name in names}
    return {
        name: {"sha256": sha256(path), "bytes": os.path.getsize(path)}
        for name, path in paths.items()
        if os.path.exists(path)
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):  # not installed, or as onnxruntime-gpu
            found[package] = version(package)
    return found
