"""The exported folder, read with only NumPy and the standard library.

model.stablehlo              the network as a JAX program (`jax.export`)
model.onnx                   the network as an ONNX graph
model.safetensors            the tensors, to load or export them again
example.py                   predicts with a graph, without this package
labels.txt, README.md        for readers
config.json                  architecture and preprocessing, as in any model directory; `export`
                             holds the kind, inputs and outputs of the graphs, labels, versions and
                             hashes

There are two kinds: graphs for whole clips, and graphs for one frame of a stream and its state.

The folder is also a model directory, and can be read wherever one can.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tsm_jax.data.protocols import PROTOCOLS, EvalProtocol, Preprocessing, protocol_of
from tsm_jax.errors import UserError
from tsm_jax.files import check_regular, read_json, reason, sha256, shown, upgraded
from tsm_jax.models.architecture import CLASSIFIER, Architecture
from tsm_jax.weights.labels import check_labels, read_labels
from tsm_jax.weights.model_directory import (
    CONFIG_FILE,
    LABELS_FILE,
    WEIGHTS_FILE,
    read_description,
    read_tensors,
)

# The kinds of exported folders; the commands that write and run them, for messages.
CLIPS, STREAM = "clips", "stream"
_WRITTEN_BY = {CLIPS: "tsm export", STREAM: "tsm export --streaming"}
_RUN_BY = {CLIPS: "tsm predict", STREAM: "tsm stream"}
_SHOWN = {CLIPS: "for whole clips", STREAM: "for streams, frame by frame"}


def _from_version_1(exported: dict[str, Any]) -> dict[str, Any]:
    """Version 0.1.0 exported only clips."""
    return {"kind": CLIPS, **exported}


def _from_version_2(exported: dict[str, Any]) -> dict[str, Any]:
    """Version 2 rounded all weights of an int8 graph to [-127, 127]."""
    return {"int8_weight_limit": 127, **exported}


# Upgrades of `export` in config.json from older versions, see `files.upgraded`.
UPGRADES = (_from_version_1, _from_version_2)
EXPORT_VERSION = len(UPGRADES) + 1

# The input and outputs of a graph for clips.
VIDEO, LOGITS, FEATURES = "video", "logits", "features"
# Those of a graph for streams, with one pair of states per shift.
FRAME, STATE, NEXT_STATE = "frame", "state_{}", "next_state_{}"

STABLEHLO_FILE = "model.stablehlo"
BFLOAT16_STABLEHLO_FILE = "model_bfloat16.stablehlo"
ONNX_FILE = "model.onnx"
INT8_FILE = "model_int8.onnx"
EXAMPLE_FILE = "example.py"
README_FILE = "README.md"

# Two products of an unsigned byte and a weight of at most this fit into 16 signed bits together.
INT8_WEIGHT_LIMIT = 64

# A shape, with None for a variable size.
Shape = tuple[int | None, ...]
# The inputs and outputs of a graph: dtype and shape by name.
Ports = Mapping[str, tuple[str, Shape]]
# What one frame of a stream passes on to the next: arrays of the engine's own type.
State = Sequence[Any]


@dataclass(frozen=True)
class Artifact:
    """An exported folder."""

    folder: str
    architecture: Architecture
    preprocessing: Preprocessing
    labels: Sequence[str]  # K class names
    hashes: Mapping[str, str]  # SHA-256 of every graph and of the tensors, by file name
    crop_size: int  # S, the side of the frames that the graphs accept, in pixels
    kind: str = CLIPS  # or `STREAM`
    # Largest absolute int8 weight, of those that are summed over input channels.
    int8_weight_limit: int = INT8_WEIGHT_LIMIT

    @property
    def num_segments(self) -> int:
        """T, the frames of a clip."""
        return self.architecture.num_segments

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Shape of the clips that the graphs accept, (T, S, S, 3)."""
        return self.num_segments, self.crop_size, self.crop_size, 3

    def fitting_protocols(self) -> list[str]:
        """Returns the names of the protocols whose views have the size that the graphs accept."""
        described = [protocol_of(self.preprocessing, name) for name in PROTOCOLS]
        return [protocol.name for protocol in described if protocol.crop_size == self.crop_size]

    def protocol(self, name: str | None = None) -> EvalProtocol:
        """Returns the protocol with this name, or the stored one for None.

        Raises:
            UserError: it does not exist, or its views do not have the size that the graphs accept.
        """
        protocol, size = protocol_of(self.preprocessing, name), self.crop_size
        if protocol.crop_size != size:
            raise UserError(
                f"the protocol {protocol.name} uses frames of {protocol.crop_size} px, but the"
                f" exported graph accepts only {size} px: choose --protocol"
                f" {', '.join(self.fitting_protocols())}; or use the original weights as --model,"
                " which accept any size"
            )
        return protocol

    def path(self, name: str) -> str:
        """Returns the path of an exported file after verifying its content.

        Raises:
            UserError: the file was not exported, is missing, or has changed since the export.
        """
        path = os.path.join(self.folder, name)
        if name not in self.hashes:
            raise UserError(f"{self.folder} was exported without {name}: export it with that file")
        check_regular(path, "the exported file")
        try:
            found = sha256(path)
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {reason(error)}; copy the folder again"
            ) from error
        if found != self.hashes[name]:
            raise UserError(
                f"{path} is not the file that was exported (its SHA-256 is {found[:12]}...,"
                f" {CONFIG_FILE} says {self.hashes[name][:12]}...): copy the folder again"
            )
        return path

    def check_graph(self, name: str, ports: Ports) -> None:
        """Raises a UserError unless a graph has the expected inputs and outputs."""
        expected = self._stream_ports(ports) if self.kind == STREAM else self._clip_ports(ports)
        for port, wanted in expected.items():
            if port not in ports:
                raise UserError(f"{self.folder}/{name} has no {port}: export the model again")
            if ports[port] != wanted:
                raise UserError(
                    f"{self.folder}/{name} does not match {CONFIG_FILE}: its {port} is"
                    f" {_port(*ports[port])} instead of {_port(*wanted)}; export the model again"
                )

    def _clip_ports(self, ports: Ports) -> Ports:
        expected: Ports = {
            VIDEO: ("uint8", (None, *self.clip_shape)),
            LOGITS: ("float32", (None, len(self.labels))),
        }
        if FEATURES in ports:
            rest = ports[FEATURES][1][2:]  # up to the graph; the order depends on the format
            expected = {**expected, FEATURES: ("float32", (None, self.num_segments, *rest))}
        return expected

    def _stream_ports(self, ports: Ports) -> Ports:
        """The graph chooses the shapes of its states, but must return states of the same shapes."""
        expected: dict[str, tuple[str, Shape]] = {
            FRAME: ("uint8", (1, *self.clip_shape[1:])),
            LOGITS: ("float32", (1, len(self.labels))),
            STATE.format(0): ("float32", ()),
        }
        for i, (name, (_, shape)) in enumerate(states(ports).items()):
            fixed = tuple(size or 0 for size in shape)
            expected |= dict.fromkeys((name, NEXT_STATE.format(i)), ("float32", fixed))
        return expected

    def classifier(self) -> np.ndarray:
        """Returns the weights of the classifier, float32 `[C, K]`.

        Raises:
            UserError: the tensors cannot be read, or have another number of classes.
        """
        path = self.path(WEIGHTS_FILE)
        kernel = read_tensors(path, [CLASSIFIER])[CLASSIFIER]
        if kernel.ndim != 2 or kernel.shape[1] != len(self.labels):
            raise UserError(
                f"{path}: {CLASSIFIER} has shape {kernel.shape}, which does not match"
                f" {len(self.labels)} classes"
            )
        return kernel


def states(ports: Ports) -> Ports:
    """Returns the state inputs among the ports of a graph for streams, in order."""
    names = itertools.takewhile(ports.__contains__, map(STATE.format, itertools.count()))
    return {name: ports[name] for name in names}


def _port(dtype: str, shape: Shape) -> str:
    return f"{dtype}[{', '.join('N' if size is None else str(size) for size in shape)}]"


def is_artifact(path: str) -> bool:
    """Returns whether a path is an exported folder (of any version).

    Raises:
        UserError: its config.json cannot be read.
    """
    config = os.path.join(path, CONFIG_FILE)
    if not os.path.lexists(config):
        return False
    description = read_json(config, "the model's description")
    return isinstance(description, dict) and "export" in description


def read_artifact(folder: str, kind: str | None = CLIPS) -> Artifact:
    """Reads an exported folder.

    Args:
        folder: output of `export`.
        kind: `CLIPS`, `STREAM`, or None for either.

    Raises:
        UserError: it is not an exported folder, has another kind or an unknown version, or its
            config.json is broken.
    """
    if not is_artifact(folder):
        raise UserError(f"{folder} is not an exported folder: write one with tsm export")
    architecture, preprocessing, description = read_description(folder)
    path = os.path.join(folder, CONFIG_FILE)
    exported = description["export"]
    if not isinstance(exported, dict):
        raise UserError(f"{path}: export is {shown(exported)}: export the model again")
    version = exported.get("version")
    exported = upgraded(exported, version, UPGRADES, f"the export in {folder}")
    found = exported.get("kind")
    if found not in (CLIPS, STREAM):
        raise UserError(f"{path}: export.kind is {shown(found)}: it must be {CLIPS} or {STREAM}")
    if kind is not None and found != kind:
        raise UserError(
            f"{folder} was exported {_SHOWN[found]}: run it with {_RUN_BY[found]}, or export the"
            f" other kind with {_WRITTEN_BY[kind]} --weights {folder}"
        )
    labels = exported.get("labels")
    if not isinstance(labels, list):
        raise UserError(f"{path}: export.labels is {shown(labels)}: it must be a list")
    check_labels(labels, architecture.num_classes, f"{path}: label")
    labels_path = os.path.join(folder, LABELS_FILE)
    if os.path.lexists(labels_path) and read_labels(labels_path) != labels:
        raise UserError(
            f"{labels_path} and {path} have different class names: to rename classes, change both"
        )
    hashes = _hashes(exported.get("files"), path)
    size = protocol_of(preprocessing).crop_size
    if version == 1 and _size(exported) == preprocessing.crop_size:
        size = preprocessing.crop_size  # even where the stored protocol shows the whole short side
    limit = exported.get("int8_weight_limit")
    if not isinstance(limit, int):
        raise UserError(f"{path}: export.int8_weight_limit is {shown(limit)}: export it again")
    return Artifact(folder, architecture, preprocessing, labels, hashes, size, found, limit)


def _size(exported: Mapping[str, Any]) -> int | None:
    """Returns S according to `export.input`, or None if it is not stored there."""
    described = exported.get("input")
    shape = described.get("shape") if isinstance(described, dict) else None
    return shape[2] if isinstance(shape, list) and len(shape) == 5 else None


def _hashes(files: Any, path: str) -> dict[str, str]:
    hashes = {}
    for name, file in files.items() if isinstance(files, dict) else [("", None)]:
        digest = file.get("sha256") if isinstance(file, dict) else None
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise UserError(
                f"{path}: export.files has no SHA-256 of {shown(name)}: copy the folder again"
            )
        hashes[name] = digest
    return hashes
