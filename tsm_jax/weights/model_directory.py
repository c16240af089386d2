"""The model directory: a trained network as plain files, without pickle.

config.json          architecture, preprocessing and provenance of the weights
model.safetensors    tensors by name
labels.txt           class names in label order, one per line
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tsm_jax.data.protocols import Preprocessing
from tsm_jax.errors import UserError, naming
from tsm_jax.files import (
    check_regular,
    from_json,
    new_folder,
    read_json,
    reason,
    shown,
    upgraded,
    write_json,
    write_lines,
)
from tsm_jax.models.architecture import Architecture
from tsm_jax.terminal import printable
from tsm_jax.weights.labels import check_labels, read_labels

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
LABELS_FILE = "labels.txt"


def _from_version_1(description: dict[str, Any]) -> dict[str, Any]:
    """0.1.0 identified ResNets by depth."""
    architecture = description.get("architecture")
    if not isinstance(architecture, dict) or "depth" not in architecture:
        return description
    renamed = {**architecture, "backbone": f"resnet{architecture['depth']}"}
    del renamed["depth"]
    return {**description, "architecture": renamed}


def _from_version_2(description: dict[str, Any]) -> dict[str, Any]:
    """Version 2 did not store the frame rate."""
    preprocessing = description.get("preprocessing")
    if not isinstance(preprocessing, dict):
        return description
    return {**description, "preprocessing": {"frame_rate": 0.0, **preprocessing}}


# Upgrades of config.json from older versions; see `files.upgraded`.
UPGRADES = (_from_version_1, _from_version_2)
FORMAT_VERSION = len(UPGRADES) + 1


@dataclass(frozen=True)
class Model:
    """A network with its weights and everything needed to rebuild it.

    Attributes:
        labels: K class names, in the order of the logits.
        tensors: float32 parameters and running statistics by name.
        provenance: origin of the weights as free-form JSON. Absolute paths are reduced to their
            last component, because models are shared.
    """

    architecture: Architecture
    preprocessing: Preprocessing
    labels: Sequence[str]
    tensors: Mapping[str, np.ndarray]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "provenance", without_folders(self.provenance))


def without_folders(value: Any) -> Any:
    """Returns a JSON value without private locations.

    Absolute paths and paths below a home directory are reduced to their last component; URLs lose
    their user, password, query and fragment. Relative paths are unchanged.
    """
    match value:
        case dict():
            return {key: without_folders(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(map(without_folders, value))
        case str() if value.startswith(("/", "~", "file:")):
            return value.rstrip("/").rpartition("/")[2]
        case str() if "://" in value:
            return re.sub(r"(?<=://)[^/@]*@|[?#].*", "", value)
    return value


def write_model_directory(model: Model, directory: str) -> None:
    """Writes a model directory; it appears complete or not at all.

    Raises:
        UserError: the directory already exists or cannot be written, or a reader would refuse the
            model's labels or tensors.
    """
    with new_folder(directory) as folder:
        fill_model_directory(model, folder)


def fill_model_directory(model: Model, folder: str) -> None:
    """Writes the files of a model directory into an existing folder."""
    check_labels(model.labels, model.architecture.num_classes, f"{LABELS_FILE}: line")
    weights = os.path.join(folder, WEIGHTS_FILE)
    check_values(model.tensors, weights)
    content = save({name: np.ascontiguousarray(value) for name, value in model.tensors.items()})
    with open(weights, "wb") as file:  # safetensors creates files that only their owner can read
        file.write(content)
    write_lines(os.path.join(folder, LABELS_FILE), model.labels)
    description = {
        "format_version": FORMAT_VERSION,
        "architecture": asdict(model.architecture),
        "preprocessing": asdict(model.preprocessing),
        "provenance": model.provenance,
    }
    write_json(os.path.join(folder, CONFIG_FILE), description)


def is_model_directory(path: str) -> bool:
    """Returns whether a path looks like a model directory."""
    return os.path.isfile(os.path.join(path, CONFIG_FILE))


def read_model_directory(directory: str) -> Model:
    """Reads a model directory.

    Raises:
        UserError: a file is missing or broken, or has an unsupported format version.
    """
    architecture, preprocessing, description = read_description(directory)
    return Model(
        architecture,
        preprocessing,
        read_labels(os.path.join(directory, LABELS_FILE), architecture.num_classes),
        read_tensors(os.path.join(directory, WEIGHTS_FILE)),
        description["provenance"],
    )


def read_description(directory: str) -> tuple[Architecture, Preprocessing, dict[str, Any]]:
    """Reads config.json.

    Returns:
        The architecture, the preprocessing and the whole content.

    Raises:
        UserError: the file is missing or broken, or has an unsupported format version.
    """
    path = os.path.join(directory, CONFIG_FILE)
    description = read_json(path, "the model's description")
    if not isinstance(description, dict) or "format_version" not in description:
        raise UserError(f"{path} does not describe a tsm_jax model: it has no format_version")
    with naming(path):
        version = description["format_version"]
        description = upgraded(description, version, UPGRADES, "the model")
        architecture = from_json(Architecture, description.get("architecture"))
        preprocessing = from_json(Preprocessing, description.get("preprocessing"))
        _check_provenance(description.setdefault("provenance", {}))
    return architecture, preprocessing, description


def _check_provenance(provenance: Any) -> None:
    """Checks that provenance is valid JSON, and the parts of it that the model card reads."""
    if not isinstance(provenance, dict):
        raise UserError(f"provenance is {shown(provenance)}: it must be an object")
    for part in ("recipe", "metrics"):
        if not isinstance(provenance.get(part, {}), dict):
            raise UserError(f"provenance.{part} is {shown(provenance[part])}: it must be an object")
    metrics = provenance.get("metrics", {})
    for name in ("top1", "top5", "loss", "count") if metrics else ():
        if type(metrics.get(name)) not in (int, float) or not abs(metrics[name]) < 1e15:
            raise UserError(
                f"provenance.metrics.{name} is {shown(metrics.get(name))}: it must be a number"
            )
    try:
        json.dumps(provenance, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # 1e999 is read as infinity; "\ud800" is not a character
        raise UserError(f"provenance: {printable(error)}") from None


def check_tensors(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """Raises a UserError unless `tensors` has exactly the expected names and shapes."""
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{printable(name)} is unexpected" for name in tensors if name not in expected]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{source} does not fit the network: {', '.join(problems[:3])}{more}")


def read_tensors(path: str, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Reads float32 tensors from a safetensors file.

    Args:
        names: tensors to read; empty for all.

    Raises:
        UserError: the file is damaged, or a tensor is missing, not float32 or not finite.
    """
    with open_tensors(path) as file:
        present = set(file.keys())
        for name in names:
            if name not in present:
                raise UserError(f"cannot read {path}: it has no tensor {name}")
        # Checked before reading the values, because NumPy lacks some dtypes.
        for name in sorted(names or present):
            dtype = file.get_slice(name).get_dtype()
            if dtype != "F32":
                raise UserError(f"cannot read {path}: {printable(name)} is {dtype}: it must be F32")
        tensors = {name: file.get_tensor(name) for name in names or file.keys()}
    check_values(tensors, path)
    return tensors


@contextmanager
def open_tensors(path: str) -> Iterator[Any]:
    """Opens a safetensors file and converts errors in the `with` block to UserErrors."""
    check_regular(path, "the weights")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError, ValueError) as error:  # ValueError: NumPy's size limit
        raise UserError(f"cannot read {path}: {printable(reason(error))}") from error


def check_values(tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Raises a UserError unless all tensors are float32 and finite."""
    for name, value in tensors.items():
        if value.dtype != np.float32:
            raise UserError(f"{source}: {printable(name)} is {value.dtype}: it must be float32")
        if not np.isfinite(value).all():
            raise UserError(
                f"{source}: {printable(name)} contains values that are not finite: the weights are"
                " damaged, or their training diverged"
            )
