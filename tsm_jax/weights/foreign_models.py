"""Models from files of PaddleVideo, MIT, mmaction2, torchvision and timm, and files from models."""

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

# How every TSM of PaddleVideo shifts.
_PADDLE_SHIFT: dict[str, Any] = {
    "shift": "past_first",
    "shift_fraction": "1/num_segments",
    "shift_every": 1,
}
# In the names of PP-TSMv2's files, as PPTSMv2_k400_16f.pdparams.
_FRAMES = re.compile(r"_([1-9]\d?)f(?=[_.])")

# What we write beside the tensors of a PyTorch file.
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


def read_paddle_model(path: str, *, num_segments: int | None = None) -> Model:
    """A model from a `.pdparams` of PaddleVideo's TSM or PP-TSM.

    Args:
        num_segments: T that it was trained with. PaddleVideo shifts 1/T of the channels each way.
            None for what an attention or the file's name tells, else 8.

    Raises:
        UserError: the file cannot be read, is no TSM, or has no classifier.
    """
    tensors, found = read_paddle_tensors(path)
    num_classes = _num_classes(path, found)
    num_segments, told = _paddle_segments(path, found, num_segments)
    architecture = Architecture(
        found.backbone, num_classes, num_segments, found.width, **_PADDLE_SHIFT
    )
    # PP-TSM is tested with other frames and pixels than TSM: those of `tools/predict.py`.
    protocol = "test" if found.backbone in BLOCKS else "paddle_predict"
    title = BACKBONES[found.backbone].title
    read_as = f"PaddleVideo: {title}, {num_classes} classes{told}; views: {protocol}"
    provenance = _provenance(path, "PaddleVideo", read_as)
    provenance |= {"source_dtypes": found.dtypes, "source_ignored": list(found.ignored)}
    names = labels_for(num_classes) or numbered(num_classes)
    return Model(architecture, Preprocessing(protocol=protocol), names, tensors, provenance)


def read_paddle_tensors(path: str) -> tuple[dict[str, np.ndarray], PaddleArchitecture]:
    """The tensors of a `.pdparams` by our names, with or without a classifier."""
    return from_paddle(read_paddle(path), path)


def _num_classes(path: str, found: PaddleArchitecture | TorchNetwork) -> int:
    if found.num_classes is None:
        raise UserError(
            f"{path} has no classifier: it can be trained from (--config.init_from), not evaluated"
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
    """T, and for a message where it comes from."""
    if found.num_segments:
        if given not in (None, found.num_segments):
            raise UserError(
                f"{path} has an attention over {found.num_segments} segments, not {given}: give the"
                f" number it was trained with (convert: --num_segments {found.num_segments})"
            )
        return found.num_segments, f", {found.num_segments} segments; the shift is not in it"
    named = None if found.backbone in BLOCKS else _FRAMES.search(os.path.basename(path))
    if named and given is None:
        return int(named[1]), f"; by the file's name: {named[1]} segments; the shift is not in it"
    segments = 8 if given is None else given
    return segments, f"; {segments} segments and the shift are not in it"


def write_paddle_model(model: Model, path: str) -> None:
    """Writes a `.pdparams` that PaddleVideo's TSM loads.

    Raises:
        UserError: PaddleVideo has no such network, and would answer something else with these
            weights; or the file cannot be written.
    """
    _check_new(path)
    architecture = model.architecture
    check_shift(architecture, "PaddleVideo", **_PADDLE_SHIFT)
    write_paddle(path, *to_paddle(model.tensors, architecture))


def _check_new(path: str) -> None:
    if os.path.exists(path):
        raise UserError(f"{path} exists already: delete it or choose another one")


def read_torch_model(path: str, *, num_segments: int | None = None) -> Model:
    """A model from a `.pth`, `.pth.tar` or `.safetensors` of MIT, mmaction2, torchvision or timm.

    `provenance["read_as"]` says in words what was found, and what of it only the file's name tells.

    Args:
        num_segments: T that it was trained with, where its name does not tell.

    Raises:
        UserError: the file cannot be read, is of another network, or does not tell T.
    """
    content, tensors, network = _read_torch(path)
    num_classes = _num_classes(path, network)
    told = told_by_name("" if network.family == IMAGE else os.path.basename(path))
    inside = _beside(content, num_classes)
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
    with naming(path):
        architecture = Architecture(
            network.backbone,
            num_classes,
            known,
            network.width,
            shift=network.shift,
            shift_every=network.shift_every,
        )
    labels = inside.labels or _labels(network, num_classes, told)
    is_told = known == told.num_segments and not (num_segments or inside.num_segments)
    by_name = [f"{known} segments"] if is_told else []
    by_name += [told.data] if told.data else []
    by_name += ["trained densely"] if told.is_dense else []
    read_as = f"{described(network)}, {num_classes} classes"
    read_as += "" if is_told else f", {known} segment{'s' if known > 1 else ''}"
    read_as += f"; by the file's name: {', '.join(by_name)}" if by_name else ""
    read_as += "" if labels else "; no class names are known: give --labels to convert"
    if network.family == MMACTION2:
        protocol = "mmaction2_dense_ten_crop" if told.is_dense else "mmaction2_center_crop"
    else:
        protocol = "mit_dense_three_crop" if told.is_dense else "test"
    return Model(
        architecture,
        inside.preprocessing or Preprocessing(protocol=protocol),
        labels or numbered(num_classes),
        tensors,
        _provenance(path, network.family, read_as),
    )


def read_torch_start(
    path: str,
) -> tuple[dict[str, np.ndarray], TorchNetwork, list[str] | None]:
    """The tensors of such a file, with or without a classifier, and its class names if known."""
    content, tensors, network = _read_torch(path)
    if network.num_classes is None:
        return tensors, network, None
    labels = _beside(content, network.num_classes).labels
    told = told_by_name(os.path.basename(path))
    return tensors, network, labels or _labels(network, network.num_classes, told)


def described(network: TorchNetwork) -> str:
    """For a message: `MIT: TSM-ResNet-50, shifts future_first in 16 blocks`."""
    title = BACKBONES[network.backbone].title
    if network.family == IMAGE:
        return f"{network.family}: {title}"
    where = f" in {network.shifted} blocks" if network.shifted else ""
    return f"{network.family}: {title}, shift {network.shift}{where}"


def write_torch_model(model: Model, path: str, to: str) -> None:
    """Writes a `.pth` that MIT's `test_models.py` or mmaction2 loads.

    Beside what they read it has our class names, number of segments and preprocessing.

    Args:
        to: `mit` or `mmaction2`. A `past_only` network becomes a file of MIT's online demo.

    Raises:
        UserError: the project has no such network, and would answer something else with these
            weights; or the file cannot be written.
    """
    _check_new(path)
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


def _read_torch(path: str) -> tuple[dict[Any, Any], dict[str, np.ndarray], TorchNetwork]:
    """What the file holds, the tensors in it by our names, and their network."""
    content: dict[Any, Any]
    content = read_safetensors(path) if path.endswith(".safetensors") else read_torch(path)
    state = next(
        (content[key] for key in ("state_dict", "model") if isinstance(content.get(key), dict)),
        content,
    )
    named = {name: value for name, value in state.items() if isinstance(name, str)}
    return content, *from_torch(named, path)


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


def _beside(content: dict[Any, Any], num_classes: int) -> _Inside:
    """What stands beside the tensors: written by us, or mmaction2's `dataset_meta`."""
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
    return _Inside(segments, labels, preprocessing)


def _labels(network: TorchNetwork, num_classes: int, told: _Told) -> list[str] | None:
    if network.family == IMAGE:
        return None
    if told.data is None:
        return labels_for(num_classes)
    is_other = told.data == "jester" and network.family == MMACTION2
    names = dataset_labels("jester_mmaction2" if is_other else told.data)
    return names if names and len(names) == num_classes else None
