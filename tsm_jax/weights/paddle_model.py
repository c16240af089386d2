"""PaddleVideo's `.pdparams` as a model, and a model as a `.pdparams`."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

import numpy as np

from tsm_jax.data.protocols import Preprocessing
from tsm_jax.errors import UserError
from tsm_jax.files import sha256
from tsm_jax.models.architecture import BACKBONES, Architecture
from tsm_jax.weights.labels import labels_or_numbers
from tsm_jax.weights.model_directory import Model
from tsm_jax.weights.paddle_names import (
    PaddleArchitecture,
    from_paddle,
    parameter_names,
    to_paddle,
)
from tsm_jax.weights.paddle_pickle import read_paddle
from tsm_jax.weights.paddle_writer import write_paddle
from tsm_jax.weights.pptsm_names import PPTSM

# How every TSM of PaddleVideo shifts.
_SHIFT: dict[str, Any] = {
    "shift": "past_first",
    "shift_fraction": "1/num_segments",
    "shift_every": 1,
}


# In the names of PP-TSMv2's files, as PPTSMv2_k400_16f.pdparams.
_FRAMES = re.compile(r"_([1-9]\d?)f(?=[_.])")


def read_paddle_model(path: str, *, num_segments: int | None = None) -> Model:
    """A model from a `.pdparams` of PaddleVideo's TSM or PP-TSM.

    Args:
        path: the file.
        num_segments: T that it was trained with. PaddleVideo shifts 1/T of the channels each way.
            None for what an attention or the file's name tells, else 8.

    Raises:
        UserError: the file cannot be read, is no TSM, or has no classifier.
    """
    tensors, found = read_paddle_tensors(path)
    if found.num_classes is None:
        raise UserError(
            f"{path} has no classifier of a TSM: it can be trained from (--config.init_from), not"
            " evaluated"
        )
    num_segments, told = _segments(path, found, num_segments)
    architecture = Architecture(
        backbone=found.backbone,
        num_classes=found.num_classes,
        num_segments=num_segments,
        width=found.width,
        **_SHIFT,
    )
    # PP-TSM is tested with other frames and pixels than TSM: those of `tools/predict.py`.
    protocol = "paddle_predict" if found.backbone in PPTSM else "test"
    provenance = {
        "source": os.path.basename(path),
        "source_sha256": sha256(path),
        "source_family": "PaddleVideo",
        "read_as": (
            f"PaddleVideo: {BACKBONES[found.backbone].title}, {found.num_classes} classes{told};"
            f" views: {protocol}"
        ),
        "source_dtypes": found.dtypes,
        "source_ignored": list(found.ignored),
    }
    names = labels_or_numbers(found.num_classes)
    return Model(architecture, Preprocessing(protocol=protocol), names, tensors, provenance)


def _segments(path: str, found: PaddleArchitecture, given: int | None) -> tuple[int, str]:
    """T, and for a message where it comes from."""
    if found.num_segments:
        if given not in (None, found.num_segments):
            raise UserError(
                f"{path} has an attention over {found.num_segments} segments, not {given}: give the"
                f" number it was trained with (convert: --num_segments {found.num_segments})"
            )
        return found.num_segments, f", {found.num_segments} segments; the shift is not in it"
    named = _FRAMES.search(os.path.basename(path)) if found.backbone in PPTSM else None
    if named and given is None:
        return int(named[1]), f"; by the file's name: {named[1]} segments; the shift is not in it"
    segments = 8 if given is None else given
    return segments, f"; {segments} segments and the shift are not in it"


def read_paddle_tensors(path: str) -> tuple[dict[str, np.ndarray], PaddleArchitecture]:
    """The tensors of a `.pdparams` by our names, with or without a classifier."""
    return from_paddle(read_paddle(path).content, path)


def write_paddle_model(model: Model, path: str) -> None:
    """Writes a `.pdparams` that PaddleVideo's TSM loads.

    Raises:
        UserError: PaddleVideo has no such network, and would answer something else with these
            weights; or the file cannot be written.
    """
    if os.path.exists(path):
        raise UserError(f"{path} exists already: delete it or choose another one")
    architecture = model.architecture
    theirs = replace(architecture, **_SHIFT)
    if architecture.num_segments == 8:  # the two fractions are the same number
        theirs = replace(theirs, shift_fraction=architecture.shift_fraction)
    if architecture != theirs:
        raise UserError(
            f"PaddleVideo shifts past_first, by 1/num_segments, in every block; this model has"
            f" shift={architecture.shift}, shift_fraction={architecture.shift_fraction},"
            f" shift_every={architecture.shift_every}: its weights would answer something else"
            " there"
        )
    tensors = to_paddle(model.tensors, architecture.backbone)
    write_paddle(path, tensors, parameter_names(model.tensors, architecture.backbone))
