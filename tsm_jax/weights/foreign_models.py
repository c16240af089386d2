"""Reads models of PaddleVideo, MIT, mmaction2, torchvision and timm, and writes the first three."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tsm_jax.data.protocols import Preprocessing
from tsm_jax.errors import UserError, naming
from tsm_jax.files import from_json, sha256
from tsm_jax.models.architecture import BACKBONES, Architecture
from tsm_jax.weights.labels import check_labels, dataset_labels, labels_for, numbered
from tsm_jax.weights.model_directory import Model
from tsm_jax.weights.paddle_names import PaddleArchitecture, from_paddle, to_paddle
from tsm_jax.weights.paddle_networks import BLOCKS
from tsm_jax.weights.paddle_pickle import read_paddle
from tsm_jax.weights.pickle_writers import write_paddle, write_torch
from tsm_jax.weights.tensor_checks import check_shift
from tsm_jax.weights.torch_file import read_safetensors, read_torch
from tsm_jax.weights.torch_names import (
    IMAGE,
    MIT,
    MIT_ONLINE,
    MMACTION2,
    TorchNetwork,
    from_torch,
    to_torch,
)

# The shift of all TSM networks in PaddleVideo.
_PADDLE_SHIFT: dict[str, Any] = {
    "shift": "past_first",
    "shift_fraction": "1/num_segments",
    "shift_every": 1,
}
# Number of segments in the names of PP-TSMv2 files, such as PPTSMv2_k400_16f.pdparams.
_FRAMES = re.compile(r"_([1-9]\d?)f(?=[_.])")

# Keys that we write next to the tensors of a PyTorch file.
_CLASSES, _SEGMENTS, _PREPROCESSING = "classes", "num_segments", "preprocessing"
# Facts that neither keys nor shapes reveal, found in the names of MIT's and mmaction2's files and
# of those that their training scripts write.
_SEGMENTS_IN_NAME = re.compile(r"segment(\d+)|1x1x(\d+)")
_DATA_IN_NAME = re.compile(
    "kinetics|somethingv2|sthv2|something|sthv1|jester|ucf101|hmdb51|diving48"
)
_DATA = {  # names that differ from ours
    "kinetics": "kinetics400",
    "something": "something_v1",
    "sthv1": "something_v1",
    "somethingv2": "something_v2",
    "sthv2": "something_v2",
}
# Defaults if the file name has no number: one picture; 8 for streams, as in MIT's training.
_USUAL_SEGMENTS = {IMAGE: 1, MIT_ONLINE: 8}


def read_paddle_model(path: str, *, num_segments: int | None = None) -> Model:
    """Reads a model from a `.pdparams` of PaddleVideo's TSM or PP-TSM.

    Args:
        num_segments: number of segments T in training; PaddleVideo shifts 1/T of the channels in
            each direction. None: taken from an attention layer or the file name, else 8.

    Raises:
        UserError: the file cannot be read, is not a TSM, or has no classifier.
    """
    tensors, found = read_paddle_tensors(path)
    num_classes = _num_classes(path, found)
    num_segments, origin = _paddle_segments(path, found, num_segments)
    architecture = Architecture(
        found.backbone, num_classes, num_segments, found.width, **_PADDLE_SHIFT
    )
    # PP-TSM samples and scales frames differently from TSM in tests, as in `tools/predict.py`.
    protocol = "test" if found.backbone in BLOCKS else "paddle_predict"
    title = BACKBONES[found.backbone].title
    read_as = f"PaddleVideo: {title}, {num_classes} classes{origin}; views: {protocol}"
    provenance = _provenance(path, "PaddleVideo", read_as)
    provenance |= {"source_dtypes": found.dtypes, "source_ignored": list(found.ignored)}
    names = labels_for(num_classes) or numbered(num_classes)
    return Model(architecture, Preprocessing(protocol=protocol), names, tensors, provenance)


def read_paddle_tensors(path: str) -> tuple[dict[str, np.ndarray], PaddleArchitecture]:
    """Reads the tensors of a `.pdparams` by our names, with or without a classifier."""
    return from_paddle(read_paddle(path), path)


def _num_classes(path: str, found: PaddleArchitecture | TorchNetwork) -> int:
    if found.num_classes is None:
        raise UserError(
            f"{path} has no classifier: it cannot be evaluated, only used to start training"
            " (--config.init_from)"
        )
    return found.num_classes


def _provenance(path: str, family: str, read_as: str) -> dict[str, Any]:
    return {
        "source": os.path.basename(path),
        "source_sha256": sha256(path),
        "source_family": family,
        "read_as": read_as,
    }


def _paddle_segments(path: str, found: PaddleArchitecture, given: int | None) -> tuple[int, str]:
    """Returns the number of segments, and a text for messages that says where it comes from."""
    if found.num_segments:
        if given not in (None, found.num_segments):
            raise UserError(
                f"{path} has an attention layer for {found.num_segments} segments, not {given}:"
                f" give the number used in training (convert: --num_segments {found.num_segments})"
            )
        return found.num_segments, (
            f", {found.num_segments} segments; the file does not store the shift"
        )
    named = None if found.backbone in BLOCKS else _FRAMES.search(os.path.basename(path))
    if named and given is None:
        return int(named[1]), (
            f"; from the file name: {named[1]} segments; the file does not store the shift"
        )
    segments = 8 if given is None else given
    return segments, f"; assuming {segments} segments; the file stores neither these nor the shift"


def write_paddle_model(model: Model, path: str) -> None:
    """Writes a `.pdparams` that PaddleVideo's TSM loads.

    Raises:
        UserError: PaddleVideo has no such network or would compute something else with these
            weights, or the file cannot be written.
    """
    _check_new(path)
    architecture = model.architecture
    check_shift(architecture, "PaddleVideo", **_PADDLE_SHIFT)
    write_paddle(path, *to_paddle(model.tensors, architecture))


def _check_new(path: str) -> None:
    if os.path.exists(path):
        raise UserError(f"{path} already exists: delete it or choose another path")


def read_torch_model(path: str, *, num_segments: int | None = None) -> Model:
    """Reads a model of MIT, mmaction2, torchvision or timm.

    `provenance["read_as"]` describes in words what was found, and which parts were inferred only
    from the file name.

    Args:
        path: a `.pth`, `.pth.tar` or `.safetensors` file.
        num_segments: number of segments T in training, if the file name does not contain it.

    Raises:
        UserError: the file cannot be read or has another network, or T is unknown.
    """
    content, tensors, network = _read_torch(path)
    num_classes = _num_classes(path, network)
    facts = told_by_name("" if network.family == IMAGE else os.path.basename(path))
    stored = _stored_facts(content, num_classes)
    known = stored.num_segments or facts.num_segments
    if network.shift != "none" and known and num_segments not in (None, known):
        raise UserError(
            f"{path} was trained with {known} segments"
            f"{'' if stored.num_segments else ' according to its name'}, not {num_segments}"
        )
    known = num_segments or known or _USUAL_SEGMENTS.get(network.family)
    if known is None:
        raise UserError(
            f"{path}: neither the file nor its name says how many frames a clip has: give"
            " --num_segments"
        )
    with naming(path):
        architecture = Architecture(
            network.backbone,
            num_classes,
            known,
            network.width,
            shift=network.shift,
            shift_every=network.shift_every,
        )
    labels = stored.labels or _labels(network, num_classes, facts)
    is_in_name = known == facts.num_segments and not (num_segments or stored.num_segments)
    by_name = [f"{known} segments"] if is_in_name else []
    by_name += [facts.data] if facts.data else []
    by_name += ["trained densely"] if facts.is_dense else []
    read_as = f"{described(network)}, {num_classes} classes"
    read_as += "" if is_in_name else f", {known} segment{'s' if known > 1 else ''}"
    read_as += f"; from the file name: {', '.join(by_name)}" if by_name else ""
    read_as += "" if labels else "; class names unknown: give --labels to convert"
    if network.family == MMACTION2:
        protocol = "mmaction2_dense_ten_crop" if facts.is_dense else "mmaction2_center_crop"
    else:
        protocol = "mit_dense_three_crop" if facts.is_dense else "test"
    return Model(
        architecture,
        stored.preprocessing or Preprocessing(protocol=protocol),
        labels or numbered(num_classes),
        tensors,
        _provenance(path, network.family, read_as),
    )


def read_torch_start(
    path: str,
) -> tuple[dict[str, np.ndarray], TorchNetwork, list[str] | None]:
    """Reads the tensors, network and class names (None if unknown) of such a file.

    The file need not have a classifier.
    """
    content, tensors, network = _read_torch(path)
    if network.num_classes is None:
        return tensors, network, None
    labels = _stored_facts(content, network.num_classes).labels
    facts = told_by_name(os.path.basename(path))
    return tensors, network, labels or _labels(network, network.num_classes, facts)


def described(network: TorchNetwork) -> str:
    """Describes a network for messages: `MIT: ResNet-50, shift future_first in 16 blocks`."""
    title = BACKBONES[network.backbone].title
    if network.family == IMAGE:
        return f"{network.family}: {title}"
    where = f" in {network.shifted} blocks" if network.shifted else ""
    return f"{network.family}: {title}, shift {network.shift}{where}"


def write_torch_model(model: Model, path: str, to: str) -> None:
    """Writes a `.pth` that MIT's `test_models.py` or mmaction2 loads.

    The file also contains our class names, number of segments and preprocessing.

    Args:
        to: `mit` or `mmaction2`. With `mit`, a `past_only` network becomes a file for MIT's online
            demo, with the bare tensors only.

    Raises:
        UserError: the project has no such network or would compute something else with these
            weights, or the file cannot be written.
    """
    _check_new(path)
    architecture = model.architecture
    family = MMACTION2 if to == "mmaction2" else MIT
    if family == MIT and architecture.shift == "past_only":
        family = MIT_ONLINE
    tensors = to_torch(model.tensors, architecture, family)
    metadata = {
        _SEGMENTS: architecture.num_segments,
        _CLASSES: list(model.labels),
        _PREPROCESSING: asdict(model.preprocessing),
    }
    if family == MIT_ONLINE:  # the demo loads the bare tensors
        write_torch(path, tensors)
    elif family == MIT:
        arch = architecture.backbone.replace("_", "")
        write_torch(path, {"epoch": 0, "arch": arch, "state_dict": tensors, **metadata})
    else:
        write_torch(path, {"meta": metadata, "state_dict": tensors})


def _read_torch(path: str) -> tuple[dict[Any, Any], dict[str, np.ndarray], TorchNetwork]:
    """Returns the content of a file, its tensors by our names, and their network."""
    content: dict[Any, Any]
    content = read_safetensors(path) if path.endswith(".safetensors") else read_torch(path)
    state = next(
        (content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)),
        content,
    )
    named = {name: value for name, value in state.items() if isinstance(name, str)}
    return content, *from_torch(named, path)


@dataclass(frozen=True)
class _NameFacts:
    num_segments: int | None
    data: str | None
    is_dense: bool


def told_by_name(name: str) -> _NameFacts:
    """Extracts facts about a network from the name of a file of MIT or mmaction2."""
    segments = _SEGMENTS_IN_NAME.search(name)
    data = _DATA_IN_NAME.findall(name)
    # MIT's names begin with the data set and may end with the one of pretraining; mmaction2's end
    # with the data set.
    found = (data[0] if name.startswith("TSM_") else data[-1]) if data else None
    number = int(segments[1] or segments[2]) if segments else None
    return _NameFacts(number, _DATA.get(found, found) if found else None, "dense" in name)


@dataclass(frozen=True)
class _StoredFacts:
    num_segments: int | None
    labels: list[str] | None
    preprocessing: Preprocessing | None


def _stored_facts(content: dict[Any, Any], num_classes: int) -> _StoredFacts:
    """Reads the entries next to the tensors, written by us or in mmaction2's `dataset_meta`."""
    meta = content.get("meta", content)
    meta = meta if isinstance(meta, dict) else {}
    of_data = meta.get("dataset_meta")
    labels = (of_data if isinstance(of_data, dict) else meta).get(_CLASSES)
    segments = meta.get(_SEGMENTS)
    try:
        labels = list(labels)  # pyright: ignore[reportArgumentType]
        check_labels(labels, num_classes, "the file: class")
    except (TypeError, UserError):
        labels = None
    try:
        preprocessing = from_json(Preprocessing, meta.get(_PREPROCESSING))
    except UserError:
        preprocessing = None
    segments = segments if type(segments) is int and segments > 0 else None
    return _StoredFacts(segments, labels, preprocessing)


def _labels(network: TorchNetwork, num_classes: int, facts: _NameFacts) -> list[str] | None:
    if network.family == IMAGE:
        return None
    if facts.data is None:
        return labels_for(num_classes)
    is_other = facts.data == "jester" and network.family == MMACTION2
    names = dataset_labels("jester_mmaction2" if is_other else facts.data)
    return names if names and len(names) == num_classes else None
