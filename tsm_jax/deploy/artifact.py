"""The exported folder, read with NumPy and the standard library alone.

model.stablehlo              the network as a JAX program (`jax.export`)
model.onnx                   the same as an ONNX graph
model.safetensors            the tensors, to load or export them again
labels.txt, README.md        for readers
config.json                  architecture and preprocessing as in any model directory, and under
                             `export` what the graphs take and give, labels, versions and hashes

It is a model directory, too: everything that reads one reads this.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tsm_jax.errors import UserError
from tsm_jax.weights.model_directory import CONFIG_FILE, WEIGHTS_FILE, Preprocessing

EXPORT_VERSION = 1


@dataclass(frozen=True)
class Artifact:
    """An exported folder.

    Attributes:
        folder: where it is.
        num_segments: T.
        preprocessing: of the pixels.
        labels: K class names.
        hashes: file name to SHA-256 of every graph and of the tensors.
    """

    folder: str
    num_segments: int
    preprocessing: Preprocessing
    labels: Sequence[str]
    hashes: Mapping[str, str]

    def has(self, name: str) -> bool:
        """Whether a file was exported."""
        return name in self.hashes

    def path(self, name: str) -> str:
        """The path of an exported file whose content was verified.

        Raises:
            UserError: it was not exported, is missing, or is not what was exported.
        """
        path = os.path.join(self.folder, name)
        if name not in self.hashes:
            raise UserError(f"{self.folder} was exported without {name}: export it again with it")
        try:
            found = sha256(path)
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror}; copy the folder again"
            ) from error
        if found != self.hashes[name]:
            raise UserError(
                f"{path} is not the file that was exported (its SHA-256 is {found[:12]}...,"
                f" {CONFIG_FILE} says {self.hashes[name][:12]}...): copy the folder again"
            )
        return path

    def classifier(self) -> np.ndarray:
        """The weights of the classifier, float32 `[C, K]`.

        Raises:
            UserError: the tensors cannot be read.
        """
        path = self.path(WEIGHTS_FILE)
        try:
            with safe_open(path, framework="numpy") as file:
                return file.get_tensor("head.fc.kernel")
        except SafetensorError as error:
            raise UserError(f"cannot read {path}: {error}") from error


def is_artifact(path: str) -> bool:
    """Whether a path is an exported folder (of whatever version)."""
    try:
        return "export" in _read_json(os.path.join(path, CONFIG_FILE))
    except (OSError, ValueError):
        return False


def read_artifact(folder: str) -> Artifact:
    """Reads what `export` wrote.

    Raises:
        UserError: it is no exported folder, or of another version, or its config is broken.
    """
    path = os.path.join(folder, CONFIG_FILE)
    try:
        description = _read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no exported folder: cannot read {path}: {error}") from error
    try:
        exported = description["export"]
        if exported["version"] != EXPORT_VERSION:
            raise UserError(
                f"{folder} was exported as version {exported['version']}, this is version"
                f" {EXPORT_VERSION}: export the model again"
            )
        names = {item.name for item in fields(Preprocessing)}
        preprocessing = {name: description["preprocessing"][name] for name in names}
        return Artifact(
            folder=folder,
            num_segments=int(description["architecture"]["num_segments"]),
            preprocessing=Preprocessing(**preprocessing),
            labels=[str(label) for label in exported["labels"]],
            hashes={name: str(file["sha256"]) for name, file in exported["files"].items()},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: {error} is missing or wrong: export the model again") from error


def sha256(path: str) -> str:
    """Of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    return content
