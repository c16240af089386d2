"""The model directory: a trained network as plain files, without pickle.

config.json          architecture, preprocessing, where the weights came from
model.safetensors    the tensors by name
labels.txt           class names in order, one a line
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
    """0.1.0 knew ResNets by their depth."""
    architecture = description.get("architecture")
    if not isinstance(architecture, dict) or "depth" not in architecture:
        return description
    renamed = {**architecture, "backbone": f"resnet{architecture['depth']}"}
    del renamed["depth"]
    return {**description, "architecture": renamed}


def _from_version_2(description: dict[str, Any]) -> dict[str, Any]:
    """Nobody noted how fast the frames of a clip follow each other."""
    preprocessing = description.get("preprocessing")
    if not isinstance(preprocessing, dict):
        return description
    return {**description, "preprocessing": {"frame_rate": 0.0, **preprocessing}}


# What config.json of older versions means, architecture and preprocessing, see `files.upgraded`.
UPGRADES = (_from_version_1, _from_version_2)
FORMAT_VERSION = len(UPGRADES) + 1


@dataclass(frozen=True)
class Model:
    """A network with its weights, ready to be rebuilt anywhere.

    Attributes:
        labels: K class names, in the order of the logits.
        tensors: float32 by name, parameters and running statistics.
        provenance: where the weights came from; free JSON. Of absolute paths in it only the name
            is kept, because a model is given to others.
    """

    architecture: Architecture
    preprocessing: Preprocessing
    labels: Sequence[str]
    tensors: Mapping[str, np.ndarray]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "provenance", without_folders(self.provenance))


def without_folders(value: Any) -> Any:
    """JSON in which no text says where on a machine, or for whom, something is.

    Of absolute paths and those below a home directory the last name is left, of an address what
    may be read by anybody (no password, no query). Relative paths stay.
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
        UserError: the directory exists already or cannot be written, or the model's labels or
            tensors are not what a reader would take.
    """
    with new_folder(directory) as folder:
        fill_model_directory(model, folder)


def fill_model_directory(model: Model, folder: str) -> None:
    """Writes the files of a model directory into a folder that is there."""
    check_labels(model.labels, model.architecture.num_classes, f"{LABELS_FILE}: line")
    weights = os.path.join(folder, WEIGHTS_FILE)
    check_values(model.tensors, weights)
    content = save({name: np.ascontiguousarray(value) for name, value in model.tensors.items()})
    with open(weights, "wb") as file:  # safetensors makes files that only their owner can read
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
    """Whether a path looks like a model directory."""
    return os.path.isfile(os.path.join(path, CONFIG_FILE))


def read_model_directory(directory: str) -> Model:
    """Reads a model directory.

    Raises:
        UserError: a file is missing or broken, or of another version of the format.
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
    """Reads config.json; the whole of it comes last.

    Raises:
        UserError: it is missing or broken, or of another version of the format.
    """
    path = os.path.join(directory, CONFIG_FILE)
    description = read_json(path, "the model's description")
    if not isinstance(description, dict) or "format_version" not in description:
        raise UserError(f"{path} is not the description of a tsm_jax model")
    with naming(path):
        version = description["format_version"]
        description = upgraded(description, version, UPGRADES, "the model")
        architecture = from_json(Architecture, description.get("architecture"))
        preprocessing = from_json(Preprocessing, description.get("preprocessing"))
        _check_provenance(description.setdefault("provenance", {}))
    return architecture, preprocessing, description


def _check_provenance(provenance: Any) -> None:
    """It is free, but has to be JSON that can be written again and what the model card reads."""
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
    """Raises a UserError unless exactly the expected tensors are there, of those shapes."""
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{printable(name)} is unexpected" for name in tensors if name not in expected]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{source} does not fit the network: {', '.join(problems[:3])}{more}")


def read_tensors(path: str, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Reads the float32 tensors of some names, or all, of a safetensors file.

    Raises:
        UserError: the file is damaged, or a tensor is missing, not float32 or not finite.
    """
    with open_tensors(path) as file:
        present = set(file.keys())
        for name in names:
            if name not in present:
                raise UserError(f"cannot read {path}: it has no tensor {name}")
        # The dtype before the values: NumPy has no name for some of them.
        for name in sorted(names or present):
            dtype = file.get_slice(name).get_dtype()
            if dtype != "F32":
                raise UserError(f"cannot read {path}: {printable(name)} is {dtype}: it must be F32")
        tensors = {name: file.get_tensor(name) for name in names or file.keys()}
    check_values(tensors, path)
    return tensors


@contextmanager
def open_tensors(path: str) -> Iterator[Any]:
    """Opens a safetensors file; within, its errors become UserErrors."""
    check_regular(path, "the weights")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError, ValueError) as error:  # ValueError: a size NumPy cannot have
        raise UserError(f"cannot read {path}: {printable(reason(error))}") from error


def check_values(tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Raises a UserError unless all tensors are float32 and finite."""
    for name, value in tensors.items():
        if value.dtype != np.float32:
            raise UserError(f"{source}: {printable(name)} is {value.dtype}: it must be float32")
        if not np.isfinite(value).all():
            raise UserError(
                f"{source}: {printable(name)} holds values that are not finite: the weights are"
                " damaged, or their training diverged"
            )
