"""Models in the files of PyTorch projects: MIT's, mmaction2's, torchvision's and timm's."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tsm_jax.data.protocols import Preprocessing
from tsm_jax.errors import UserError
from tsm_jax.files import sha256
from tsm_jax.models.architecture import BACKBONES, Architecture
from tsm_jax.stored import from_json
from tsm_jax.weights.labels import check_labels, dataset_labels, labels_for, numbered
from tsm_jax.weights.model_directory import Model
from tsm_jax.weights.tensor_file import read_any_tensors
from tsm_jax.weights.torch_file import read_torch
from tsm_jax.weights.torch_names import (
    IMAGE,
    MIT,
    MIT_ONLINE,
    MMACTION2,
    TorchNetwork,
    from_torch,
    to_torch,
)
from tsm_jax.weights.torch_writer import write_torch

SAFETENSORS = ".safetensors"
# What we write beside the tensors.
_CLASSES, _SEGMENTS, _PREPROCESSING = "classes", "num_segments", "preprocessing"

# What neither keys nor shapes show, in the names of MIT's and mmaction2's files and of those that
# their training scripts write.
_SEGMENTS_IN_NAME = re.compile(r"segment(\d+)|1x1x(\d+)")
_DATA_IN_NAME = re.compile(
    "kinetics|somethingv2|sthv2|something|sthv1|jester|ucf101|hmdb51|diving48"
)
_DATA = {  # where it is called otherwise
    "kinetics": "kinetics400",
    "something": "something_v1",
    "sthv1": "something_v1",
    "somethingv2": "something_v2",
    "sthv2": "something_v2",
}
# Without a number in the name: one picture; a stream, which MIT trains on clips of 8 frames.
_USUAL_SEGMENTS = {IMAGE: 1, MIT_ONLINE: 8}


def read_torch_model(path: str, *, num_segments: int | None = None) -> Model:
    """A model from a `.pth`, `.pth.tar` or `.safetensors` of MIT, mmaction2, torchvision or timm.

    `provenance["read_as"]` says in words what was found, and what of it only the file's name tells.

    Args:
        path: the file.
        num_segments: T that it was trained with, where its name does not tell.

    Raises:
        UserError: the file cannot be read, is of another network, or does not tell T.
    """
    content, state = _state_dict(path)
    tensors, network = from_torch(state, path)
    if network.num_classes is None:
        raise UserError(
            f"{path} has no classifier: it can be trained from (--config.init_from), not evaluated"
        )
    told = told_by_name("" if network.family == IMAGE else os.path.basename(path))
    inside = _beside(content)
    known = inside.num_segments or told.num_segments
    if network.shift != "none" and known and num_segments not in (None, known):
        raise UserError(
            f"{path} was trained with {known} segments"
            f"{'' if inside.num_segments else ', says its name'}, not {num_segments}"
        )
    known = num_segments or known or _USUAL_SEGMENTS.get(network.family)
    if known is None:
        raise UserError(
            f"{path}: neither it nor its name tells how many frames a clip has: give --num_segments"
        )
    try:
        architecture = Architecture(
            backbone=network.backbone,
            num_classes=network.num_classes,
            num_segments=known,
            width=network.width,
            shift=network.shift,
            shift_every=network.shift_every,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    labels = inside.labels_of(network.num_classes) or _labels(network, told)
    is_told = known == told.num_segments and not (num_segments or inside.num_segments)
    by_name = [f"{known} segments"] if is_told else []
    by_name += [told.data] if told.data else []
    by_name += ["trained densely"] if told.is_dense else []
    read_as = f"{described(network)}, {network.num_classes} classes"
    read_as += "" if is_told else f", {known} segment{'s' if known > 1 else ''}"
    read_as += f"; by the file's name: {', '.join(by_name)}" if by_name else ""
    read_as += "" if labels else "; no class names are known: give --labels to convert"
    provenance = {
        "source": os.path.basename(path),
        "source_sha256": sha256(path),
        "source_family": network.family,
        "read_as": read_as,
    }
    names = labels or numbered(network.num_classes)
    preprocessing = inside.preprocessing or _preprocessing(network, told)
    return Model(architecture, preprocessing, names, tensors, provenance)


def read_torch_start(
    path: str,
) -> tuple[dict[str, np.ndarray], TorchNetwork, list[str] | None]:
    """The tensors of such a file, with or without a classifier, and its class names if known."""
    content, state = _state_dict(path)
    tensors, network = from_torch(state, path)
    if network.num_classes is None:
        return tensors, network, None
    inside = _beside(content).labels_of(network.num_classes)
    return tensors, network, inside or _labels(network, told_by_name(os.path.basename(path)))


def described(network: TorchNetwork) -> str:
    """For a message: `MIT: TSM-ResNet-50, shifts future_first in 16 blocks`."""
    title = BACKBONES[network.backbone].title
    if network.family == IMAGE:
        return f"{network.family}: {title}"
    where = f" in {network.shifted} blocks" if network.shifted else ""
    return f"{network.family}: {title}, shift {network.shift}{where}"


WRITTEN = ("mit", "mmaction2")  # what `write_torch_model` knows


def write_torch_model(model: Model, path: str, to: str) -> None:
    """Writes a `.pth` that MIT's `test_models.py` or mmaction2 loads.

    Beside what they read it has our class names, number of segments and preprocessing.

    Args:
        to: `mit` or `mmaction2`. A `past_only` network becomes a file of MIT's online demo.

    Raises:
        UserError: the project has no such network, and would answer something else with these
            weights; or the file cannot be written.
    """
    if os.path.exists(path):
        raise UserError(f"{path} exists already: delete it or choose another one")
    architecture = model.architecture
    family = MMACTION2 if to == "mmaction2" else MIT
    if family == MIT and architecture.shift == "past_only":
        family = MIT_ONLINE
    tensors = to_torch(model.tensors, architecture, family)
    beside = {
        _SEGMENTS: architecture.num_segments,
        _CLASSES: list(model.labels),
        _PREPROCESSING: asdict(model.preprocessing),
    }
    if family == MIT_ONLINE:  # the demo wants the bare tensors
        write_torch(path, tensors)
    elif family == MIT:
        arch = architecture.backbone.replace("_", "")
        write_torch(path, {"epoch": 0, "arch": arch, "state_dict": tensors, **beside})
    else:
        write_torch(path, {"meta": beside, "state_dict": tensors})


def _state_dict(path: str) -> tuple[dict[Any, Any], dict[str, Any]]:
    """What the file holds, and the state dict in it."""
    if path.endswith(SAFETENSORS):
        content: dict[Any, Any] = read_any_tensors(path)
    else:
        content = read_torch(path)
    state = next(
        (content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)),
        content,
    )
    return content, {name: value for name, value in state.items() if isinstance(name, str)}


@dataclass(frozen=True)
class _Told:
    num_segments: int | None
    data: str | None
    is_dense: bool


def told_by_name(name: str) -> _Told:
    """What the name of a file of MIT or mmaction2 tells."""
    segments = _SEGMENTS_IN_NAME.search(name)
    data = _DATA_IN_NAME.findall(name)
    # MIT begins with it and may end with what was tuned from; mmaction2 ends with it.
    found = (data[0] if name.startswith("TSM_") else data[-1]) if data else None
    number = int(segments[1] or segments[2]) if segments else None
    return _Told(number, _DATA.get(found, found) if found else None, "dense" in name)


@dataclass(frozen=True)
class _Inside:
    num_segments: int | None
    labels: list[str] | None
    preprocessing: Preprocessing | None

    def labels_of(self, num_classes: int) -> list[str] | None:
        return self.labels if self.labels and len(self.labels) == num_classes else None


def _beside(content: dict[Any, Any]) -> _Inside:
    """What stands beside the tensors: written by us, or mmaction2's `dataset_meta`."""
    meta = content.get("meta", content)
    meta = meta if isinstance(meta, dict) else {}
    of_data = meta.get("dataset_meta")
    labels = (of_data if isinstance(of_data, dict) else meta).get(_CLASSES)
    segments = meta.get(_SEGMENTS)
    try:
        labels = list(labels)  # pyright: ignore[reportArgumentType]
        check_labels(labels, len(labels), "the file: class")
    except (TypeError, UserError):
        labels = None
    try:
        preprocessing = from_json(Preprocessing, meta.get(_PREPROCESSING))
    except UserError:
        preprocessing = None
    segments = segments if type(segments) is int and segments > 0 else None
    return _Inside(segments, labels, preprocessing)


def _labels(network: TorchNetwork, told: _Told) -> list[str] | None:
    assert network.num_classes is not None
    if network.family == IMAGE:
        return None
    if told.data is None:
        names = labels_for(network.num_classes)
    elif told.data == "jester" and network.family == MMACTION2:
        names = dataset_labels("jester_mmaction2")
    else:
        names = dataset_labels(told.data)
    return names if names and len(names) == network.num_classes else None


def _preprocessing(network: TorchNetwork, told: _Told) -> Preprocessing:
    if network.family == MMACTION2:
        dense = told.is_dense
        return Preprocessing(
            protocol="mmaction2_dense_ten_crop" if dense else "mmaction2_center_crop"
        )
    return Preprocessing(protocol="mit_dense_three_crop" if told.is_dense else "test")
