"""The README.md of an exported folder: the model card, and what is in the folder."""

from __future__ import annotations

import os
from typing import Any

from tsm_jax.data.protocols import protocol_of
from tsm_jax.deploy.artifact import (
    BFLOAT16_STABLEHLO_FILE,
    EXAMPLE_FILE,
    INT8_FILE,
    ONNX_FILE,
    README_FILE,
    STABLEHLO_FILE,
    STREAM,
)
from tsm_jax.exporting.model_card import model_card, render
from tsm_jax.files import write_text
from tsm_jax.weights.model_directory import CONFIG_FILE, LABELS_FILE, WEIGHTS_FILE, Model

_ABOUT = {
    EXAMPLE_FILE: "predicts without tsm_jax",
    STABLEHLO_FILE: "JAX program with weights, float32, for CPU, CUDA and TPU",
    BFLOAT16_STABLEHLO_FILE: "the same, convolutions in bfloat16",
    ONNX_FILE: "ONNX graph, float32",
    INT8_FILE: "ONNX graph, 8-bit convolutions",
    WEIGHTS_FILE: "the tensors, to load or export them again",
    LABELS_FILE: "class names, in the order of the logits",
    CONFIG_FILE: "input, outputs, preprocessing, versions, SHA-256 of the files",
}


def write_readme(model: Model, folder: str, title: str, description: dict[str, Any]) -> None:
    """Writes README.md beside the files that it describes.

    Args:
        title: the folder's final name.
        description: the content of config.json.
    """
    export = description["export"]
    present = [name for name in _ABOUT if os.path.exists(os.path.join(folder, name))]
    streams = export["kind"] == STREAM
    text = model_card(model, title=title, path=title, streams=streams) + render(
        "readme.md.jinja",
        streams=streams,
        has_onnx=ONNX_FILE in present,
        classes=model.architecture.num_classes,
        frames=model.architecture.num_segments,
        size=protocol_of(model.preprocessing).crop_size,
        short_side=model.preprocessing.short_side,
        rate=f"{model.preprocessing.frame_rate:g}",
        files={name: _ABOUT[name] for name in present},
        checks=export["self_check"],
    )
    write_text(os.path.join(folder, README_FILE), text)
