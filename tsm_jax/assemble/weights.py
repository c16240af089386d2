"""Weights of any kind: model directory, workdir of a training run, `.pdparams`, or remote."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from tsm_jax.config import CHECKPOINTS
from tsm_jax.errors import UserError
from tsm_jax.weights.hub import fetch_from_hub, is_hub_address
from tsm_jax.weights.labels import read_labels
from tsm_jax.weights.model_directory import Model, is_model_directory, read_model_directory
from tsm_jax.weights.paddle_model import read_paddle_model, read_paddle_tensors
from tsm_jax.weights.zoo import ZOO, fetch, is_remote

PADDLE_SUFFIX = ".pdparams"


def load_model(
    weights: str, *, num_segments: int | None = None, labels: str | None = None
) -> Model:
    """Reads a network with its weights.

    Args:
        weights: a model directory; a workdir, of which the best checkpoint is taken; a
            `.pdparams` of PaddleVideo; or an https address or a zoo name of one; or
            `hf://owner/name`.
        num_segments: T of a `.pdparams`, 8 if None. Other weights know it themselves.
        labels: a file of class names for a `.pdparams`, one a line; None for those known by their
            number.

    Raises:
        UserError: there is nothing there, or nothing that can be read.
    """
    path = local_path(weights)
    if path.endswith(PADDLE_SUFFIX):
        model = read_paddle_model(path, num_segments=8 if num_segments is None else num_segments)
        if labels is not None:
            names = read_labels(labels, model.architecture.num_classes)
            model = replace(model, labels=names)
        return model
    model = _read_directory(path)
    known = model.architecture.num_segments
    if num_segments not in (None, known):
        raise UserError(f"{weights} was trained with {known} segments, not {num_segments}")
    return model


def load_tensors(weights: str) -> dict[str, np.ndarray]:
    """The tensors of weights of any kind, also those of a `.pdparams` without a classifier."""
    path = local_path(weights)
    if path.endswith(PADDLE_SUFFIX):
        return read_paddle_tensors(path)[0]
    return dict(load_model(path).tensors)


def local_path(weights: str) -> str:
    """Downloads what is not here yet, and checks that something usable is there.

    Raises:
        UserError: there is no such file, or it is of no known kind.
    """
    if is_hub_address(weights):
        return fetch_from_hub(weights)
    if is_remote(weights):
        return str(fetch(weights))
    if not os.path.exists(weights):
        raise UserError(
            f"there are no weights at {weights}: give a workdir, a model directory, a .pdparams,"
            f" an https address, hf://owner/name, or one of {', '.join(ZOO)}"
        )
    usable = is_model_directory(weights) or is_workdir(weights)
    if not usable and not weights.endswith(PADDLE_SUFFIX):
        raise UserError(
            f"{weights} is neither a model directory nor the workdir of a training run nor a"
            f" {PADDLE_SUFFIX}"
        )
    return weights


def is_workdir(path: str) -> bool:
    """Whether a path is the workdir of a training run."""
    return os.path.isdir(os.path.join(path, CHECKPOINTS))


def _read_directory(path: str) -> Model:
    if not is_workdir(path):
        return read_model_directory(path)
    # Late: everything else here is NumPy, and converting a file should not wait for jax and orbax.
    from tsm_jax.assemble.workdir import read_workdir

    return read_workdir(path)
