"""Writes and checks the exported folder: graphs, tensors, description and README."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
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
    README_FILE,
    STABLEHLO_FILE,
    STREAM,
    VIDEO,
    Artifact,
    read_artifact,
)
from tsm_jax.deploy.engine import missing
from tsm_jax.deploy.videos import read_views
from tsm_jax.errors import UserError
from tsm_jax.exporting.model_card import model_card, render
from tsm_jax.exporting.program import PLATFORMS, Program, export_stablehlo, make_program
from tsm_jax.exporting.self_check import check_export, check_int8
from tsm_jax.files import new_folder, read_json, sha256, write_json, write_text
from tsm_jax.models.network import MEAN, STD
from tsm_jax.weights.model_directory import (
    CONFIG_FILE,
    LABELS_FILE,
    WEIGHTS_FILE,
    Model,
    fill_model_directory,
)

_NEEDED = {"stablehlo": ("flatbuffers",), "onnx": ("onnx", "onnxruntime")}
_REAL_CLIPS_IN_CHECK = 2
_EXAMPLE = os.path.join(os.path.dirname(__file__), EXAMPLE_FILE)
_PACKAGES = ("jax", "numpy", "onnx", "onnxruntime", "openvino")
_ABOUT = {
    EXAMPLE_FILE: "script that predicts without tsm_jax",
    STABLEHLO_FILE: "JAX program with weights, float32, for CPU, CUDA and TPU",
    BFLOAT16_STABLEHLO_FILE: "the same with convolutions in bfloat16",
    ONNX_FILE: "ONNX graph, float32",
    INT8_FILE: "ONNX graph, 8-bit convolutions",
    WEIGHTS_FILE: "tensors, to load the model or to export it again",
    LABELS_FILE: "class names, in the order of the logits",
    CONFIG_FILE: "input, outputs, preprocessing, versions, SHA-256 of the files",
}


def export_model(
    model: Model,
    output: str,
    *,
    videos: Sequence[str] = (),
    formats: Sequence[str] = ("stablehlo", "onnx"),
    precisions: Sequence[str] = ("float32",),
) -> dict[str, Any]:
    """Exports a model. The folder appears complete and checked, or not at all.

    Args:
        output: the new folder.
        videos: used for the check (without any, a synthetic video is) and to calibrate int8.
        formats: `stablehlo`, `onnx` or both.
        precisions: `float32` is always included; `bfloat16` adds a StableHLO graph of half the
            size, `int8` a quantized ONNX graph.

    Returns:
        `export` of the folder's config.json.

    Raises:
        UserError: the folder exists, a package is missing, a video cannot be read, or the logits
            of a graph differ from the model's.
    """
    check_formats(formats)
    if "int8" in precisions and "onnx" not in formats:
        raise UserError("int8 needs an ONNX graph: add onnx to --formats")
    if "int8" in precisions and not videos:
        raise UserError("int8 needs videos for calibration: give --videos similar to those in use")
    with new_folder(output) as folder:
        clips = _clips(model, videos)
        held_out = np.arange(len(clips)) % 4 == 3  # int8 is evaluated on these, if there are any
        fill_model_directory(model, folder)
        write_program(make_program(model), folder, formats)
        if "bfloat16" in precisions and "stablehlo" in formats:
            coarse = export_stablehlo(make_program(model, "bfloat16"))
            Path(folder, BFLOAT16_STABLEHLO_FILE).write_bytes(coarse)
        if "int8" in precisions:
            from tsm_jax.exporting.quantization import quantize

            exact, int8 = (os.path.join(folder, name) for name in (ONNX_FILE, INT8_FILE))
            quantize(exact, int8, clips[~held_out])
        shutil.copyfile(_EXAMPLE, os.path.join(folder, EXAMPLE_FILE))

        def check(artifact: Artifact) -> dict[str, Any]:
            real = clips[:_REAL_CLIPS_IN_CHECK]
            found: dict[str, Any] = {"self_check": check_export(artifact, model, real, precisions)}
            if "int8" in precisions:
                others = bool(held_out.any())
                found["int8"] = check_int8(artifact, clips[held_out] if others else clips, others)
            return found

        return describe(model, folder, output, _ports(model), check)


def check_formats(formats: Sequence[str]) -> None:
    """Raises a UserError unless the packages that write and check these formats are installed."""
    for kind, packages in _NEEDED.items():
        lacking = missing(*packages) if kind in formats else []
        if lacking:
            raise UserError(
                f"writing and checking {kind} needs {' and '.join(lacking)}: pip install"
                f" {' '.join(lacking)}, or remove {kind} from --formats"
            )


def _clips(model: Model, videos: Sequence[str]) -> np.ndarray:
    """Returns clips of the videos, or of a synthetic one, uint8 `[N, T, S, S, 3]`."""
    protocol = protocol_of(model.preprocessing)
    frames = model.architecture.num_segments
    if videos:
        return np.concatenate([read_views(path, protocol, frames) for path in videos])
    drawn = moving_shapes.draw_clip(0, np.random.default_rng(0))
    return protocol.views([drawn[i] for i in protocol.choose_frames(len(drawn), frames)])


def write_program(program: Program, folder: str, formats: Sequence[str]) -> None:
    """Writes the graphs of a program in these formats."""
    if "stablehlo" in formats:
        Path(folder, STABLEHLO_FILE).write_bytes(export_stablehlo(program))
    if "onnx" in formats:
        from tsm_jax.exporting.onnx_graph import build_onnx

        Path(folder, ONNX_FILE).write_bytes(build_onnx(program).SerializeToString())


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
    output: str,
    ports: dict[str, Any],
    check: Callable[[Artifact], dict[str, Any]],
) -> dict[str, Any]:
    """Adds `export` to config.json, checks the graphs and writes README.md.

    Args:
        folder: the folder while it is being written.
        output: its final path.
        ports: the entries of `export` that describe its kind and the inputs and outputs of its
            graphs.
        check: checks the graphs; returns `self_check`, and `int8` if there is such a graph.

    Returns:
        `export`.
    """
    path = os.path.join(folder, CONFIG_FILE)
    description = read_json(path, "the model's description")
    exported = description["export"] = {
        "version": EXPORT_VERSION,
        **ports,
        "normalization_inside": {"mean": MEAN.tolist(), "std": STD.tolist(), "of": "RGB / 255"},
        "platforms_of_stablehlo": list(PLATFORMS),
        "labels": list(model.labels),
        "files": _files(folder),
        "versions": {"tsm_jax": tsm_jax.__version__, **_versions()},
        "self_check": [],
        "int8": None,
        "int8_weight_limit": INT8_WEIGHT_LIMIT,
    }
    write_json(path, description)  # the engines read it
    exported |= check(read_artifact(folder, ports["kind"]))
    write_json(path, description)
    title = os.path.basename(os.path.abspath(output))
    write_text(os.path.join(folder, README_FILE), _readme(model, folder, title, exported))
    return exported


def _readme(model: Model, folder: str, title: str, exported: dict[str, Any]) -> str:
    """Returns the model card followed by a description of the folder."""
    present = [name for name in _ABOUT if os.path.exists(os.path.join(folder, name))]
    streams = exported["kind"] == STREAM
    return model_card(model, title=title, path=title, streams=streams) + render(
        "readme.md.jinja",
        streams=streams,
        has_onnx=ONNX_FILE in present,
        classes=model.architecture.num_classes,
        frames=model.architecture.num_segments,
        size=protocol_of(model.preprocessing).crop_size,
        short_side=model.preprocessing.short_side,
        rate=f"{model.preprocessing.frame_rate:g}",
        files={name: _ABOUT[name] for name in present},
        checks=exported["self_check"],
    )


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
        with suppress(PackageNotFoundError):  # not installed, or only as onnxruntime-gpu
            found[package] = version(package)
    return found
