"""The model directory: a trained network as plain files, without pickle.

config.json          architecture, preprocessing, where the weights came from
model.safetensors    the tensors by name
labels.txt           class names in order, one a line
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tsm_jax.errors import UserError
from tsm_jax.models.architecture import Architecture
from tsm_jax.weights.labels import read_labels

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
LABELS_FILE = "labels.txt"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Preprocessing:
    """Pixels, as in `config.data`, and the protocol the network was validated with."""

    crop_size: int = 224
    short_side: int = 256
    protocol: str = "test"


@dataclass(frozen=True)
class Model:
    """A network with its weights, ready to be rebuilt anywhere.

    Attributes:
        architecture: of the network.
        preprocessing: of its input.
        labels: K class names, in the order of the logits.
        tensors: float32 by name, parameters and running statistics.
        provenance: where the weights came from; free JSON.
    """

    architecture: Architecture
    preprocessing: Preprocessing
    labels: Sequence[str]
    tensors: Mapping[str, np.ndarray]
    provenance: dict[str, Any] = field(default_factory=dict)


def write_model_directory(model: Model, directory: str) -> None:
    """Writes a model directory; it appears complete or not at all.

    Raises:
        UserError: the directory exists already.
    """
    if os.path.exists(directory):
        raise UserError(f"{directory} exists already: delete it or choose another one")
    parent = os.path.dirname(os.path.abspath(directory))
    os.makedirs(parent, exist_ok=True)
    partial = tempfile.mkdtemp(prefix=".partial-", dir=parent)
    try:
        os.chmod(partial, 0o755)
        tensors = {name: np.ascontiguousarray(value) for name, value in model.tensors.items()}
        weights_path = os.path.join(partial, WEIGHTS_FILE)
        save_file(tensors, weights_path)
        os.chmod(weights_path, 0o644)  # safetensors lets nobody else read it
        _write_text(partial, LABELS_FILE, "".join(f"{label}\n" for label in model.labels))
        description = {
            "format_version": FORMAT_VERSION,
            "architecture": asdict(model.architecture),
            "preprocessing": asdict(model.preprocessing),
            "provenance": model.provenance,
        }
        _write_text(partial, CONFIG_FILE, json.dumps(description, indent=2) + "\n")
        os.rename(partial, directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_text(directory: str, name: str, text: str) -> None:
    with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
        file.write(text)


def is_model_directory(path: str) -> bool:
    """Whether a path looks like a model directory."""
    return os.path.isfile(os.path.join(path, CONFIG_FILE))


def read_model_directory(directory: str) -> Model:
    """Reads a model directory.

    Raises:
        UserError: a file is missing or broken, or of another version of the format.
    """
    description = _read_description(os.path.join(directory, CONFIG_FILE))
    try:
        architecture = _from_json(Architecture, description["architecture"])
        preprocessing = _from_json(Preprocessing, description["preprocessing"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{directory}/{CONFIG_FILE}: {error} is missing or unknown") from error
    labels = read_labels(os.path.join(directory, LABELS_FILE), architecture.num_classes)
    weights_path = os.path.join(directory, WEIGHTS_FILE)
    try:
        tensors = load_file(weights_path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {weights_path}: {error}") from error
    provenance = description.get("provenance", {})
    return Model(architecture, preprocessing, labels, tensors, provenance)


def _read_description(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            description = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(description, dict) or description.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path} is no tsm_jax model of format version {FORMAT_VERSION}")
    return description


def _from_json(kind: type, values: dict[str, Any]) -> Any:
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__.lower()}")
    names = {item.name for item in fields(kind)}
    if names != values.keys():
        raise TypeError(", ".join(sorted(names ^ values.keys())))
    return kind(**values)


def check_tensors(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """Raises a UserError unless exactly the expected tensors are there, of those shapes.

    Args:
        tensors: what was read.
        expected: name to shape.
        source: where it was read from, for the message.
    """
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unexpected" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{source} does not fit the network: {', '.join(problems[:3])}{more}")
