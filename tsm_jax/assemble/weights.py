"""Weights of any kind: model directories, workdirs of training runs, files, and remote ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict

from tsm_jax.config import CHECKPOINTS
from tsm_jax.errors import UserError
from tsm_jax.terminal import printable
from tsm_jax.weights.foreign_models import read_paddle_model, read_paddle_tensors
from tsm_jax.weights.hub import fetch_from_hub, is_hub_address
from tsm_jax.weights.labels import check_same_order, read_labels
from tsm_jax.weights.model_directory import (
    LABELS_FILE,
    Model,
    check_values,
    is_model_directory,
    read_model_directory,
)
from tsm_jax.weights.start import choose_start, shift_change
from tsm_jax.weights.zoo import fetch, is_remote, names_like

if TYPE_CHECKING:  # only workdirs need jax and orbax; converting a file should not import them
    from tsm_jax.models.network import Network
    from tsm_jax.training.checkpoint import Checkpoints

PADDLE_SUFFIX = ".pdparams"
TORCH_SUFFIXES = (".pth", ".pt", ".pth.tar", ".safetensors")
SUFFIXES = (PADDLE_SUFFIX, *TORCH_SUFFIXES)


def load_model(
    weights: str, *, num_segments: int | None = None, labels: str | None = None
) -> Model:
    """Reads a network with its weights; prints to stderr how another project's file was read.

    Args:
        weights: a model directory; a workdir, whose best checkpoint is used; a `.pdparams` of
            PaddleVideo; a `.pth`, `.pt`, `.pth.tar` or `.safetensors` of MIT, mmaction2,
            torchvision or timm; an https address or a zoo name of one of these files; or
            `hf://owner/name`.
        num_segments: T for a file, which may not contain it. Other weights store it.
        labels: a file of class names, one per line, for a file of weights; None for the known ones.

    Raises:
        UserError: the weights do not exist or cannot be read.
    """
    path = local_path(weights)
    if path.endswith(SUFFIXES):
        if path.endswith(PADDLE_SUFFIX):
            model = read_paddle_model(path, num_segments=num_segments)
        else:
            # Late, as below: reading a .pdparams does not need it.
            from tsm_jax.weights.foreign_models import read_torch_model

            model = read_torch_model(path, num_segments=num_segments)
        _say(path, model.provenance["read_as"])
        if labels is not None:
            names = read_labels(labels, model.architecture.num_classes)
            model = replace(model, labels=names)
        return model
    model = _read_workdir(path) if is_workdir(path) else read_model_directory(path)
    known = model.architecture.num_segments
    if num_segments not in (None, known):
        raise UserError(f"{weights} was trained with {known} segments, not {num_segments}")
    return model


@dataclass(frozen=True)
class Source:
    """Weights that training may start from.

    Attributes:
        tensors: tensors by name, with or without a classifier.
        shift: as in `config.model`; None for an image network.
        labels: class names of the classifier; None if unknown.
    """

    tensors: dict[str, np.ndarray]
    shift: str | None
    labels: list[str] | None


def load_source(weights: str) -> Source:
    """Reads tensors from weights of any kind, including files without a classifier or segments."""
    path = local_path(weights)
    if path.endswith(PADDLE_SUFFIX):
        tensors, found = read_paddle_tensors(path)
        return Source(tensors, "past_first" if found.num_classes else None, None)
    if path.endswith(TORCH_SUFFIXES):
        from tsm_jax.weights.foreign_models import described, read_torch_start
        from tsm_jax.weights.torch_names import IMAGE

        tensors, network, labels = read_torch_start(path)
        _say(path, described(network))
        shift = None if network.family == IMAGE else network.shift
        return Source(tensors, shift, labels)
    model = load_model(path)
    return Source(dict(model.tensors), model.architecture.shift, list(model.labels))


def load_start(
    config: ConfigDict, labels: list[str], network: Network
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads the tensors of `config.init_from` for the network of a recipe.

    Returns:
        Tensors by name, and log lines about them.

    Raises:
        UserError: the tensors cannot be obtained or do not fit.
    """
    try:
        source = load_source(config.init_from)
    except UserError as error:
        if not is_remote(config.init_from):
            raise
        raise UserError(
            f"{error}; or download the file on another machine, copy it to this one and set"
            " --config.init_from=FILE (the recipe own_videos trains without one)"
        ) from error
    if config.init_head and source.labels:
        check_same_order(source.labels, config.init_from, labels, "config.data.labels")
    start = choose_start(
        source.tensors,
        {**network.param_shapes, **network.batch_stat_shapes},
        with_head=config.init_head,
        ignore=config.init_ignore,
        source=config.init_from,
    )
    origin = [f"starting from {config.init_from}: {start}"]
    if change := shift_change(source.shift, config.model.shift):
        origin.append(change)
    return start.loaded, origin


def local_path(weights: str) -> str:
    """Returns the local path of weights, downloaded if necessary and of a known kind.

    Raises:
        UserError: the file does not exist or is of an unknown kind.
    """
    if is_hub_address(weights):
        return fetch_from_hub(weights)
    if is_remote(weights):
        return str(fetch(weights))
    if not os.path.exists(weights):
        raise UserError(
            f"there are no weights at {weights}: give a workdir, a model directory, a file"
            f" ({', '.join(SUFFIXES)}), an https address, hf://owner/name, or the name of published"
            f" weights; {names_like(weights)}"
        )
    usable = is_model_directory(weights) or is_workdir(weights)
    if not usable and not weights.endswith(SUFFIXES):
        raise UserError(
            f"{weights} is neither a model directory, nor the workdir of a training run, nor a"
            f" file of weights ({', '.join(SUFFIXES)})"
        )
    return weights


def is_workdir(path: str) -> bool:
    """Returns whether a path is the workdir of a training run."""
    return os.path.isdir(os.path.join(path, CHECKPOINTS))


def _say(path: str, read_as: str) -> None:
    print(f"{printable(os.path.basename(path))}: {printable(read_as)}", file=sys.stderr, flush=True)


def read_recipe(workdir: str) -> ConfigDict:
    """Returns the recipe of the best checkpoint of a run."""
    with _best_checkpoint(workdir) as (checkpoints, step):
        return checkpoints.recipe(step)


def _read_workdir(workdir: str) -> Model:
    """Reads the network of a run's best checkpoint."""
    import jax

    from tsm_jax.assemble.network import architecture_of, preprocessing_of
    from tsm_jax.models.network import build_network
    from tsm_jax.training.mesh import make_mesh

    with _best_checkpoint(workdir) as (checkpoints, step):
        config = checkpoints.recipe(step)
        try:
            architecture = architecture_of(config.model)
            preprocessing = preprocessing_of(config.data)
        except UserError as error:
            raise UserError(f"{checkpoints.path(step)}: {error}") from error
        labels = read_labels(os.path.join(workdir, LABELS_FILE), architecture.num_classes)
        network = build_network(architecture, "float32")
        mesh = make_mesh(jax.local_devices()[:1])
        params, batch_stats = checkpoints.restore_model(step, network, mesh)
        tensors = {name: np.asarray(value) for name, value in {**params, **batch_stats}.items()}
        check_values(tensors, checkpoints.path(step))
        provenance = checkpoints.provenance(step, config)
    return Model(architecture, preprocessing, labels, tensors, provenance)


@contextmanager
def _best_checkpoint(workdir: str) -> Iterator[tuple[Checkpoints, int]]:
    """Yields the checkpoints of a run and its best step, or the newest one without validation."""
    from tsm_jax.training.checkpoint import Checkpoints

    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        step = checkpoints.best_step() or checkpoints.latest_step()
        if step is None:
            raise UserError(
                f"{workdir} has no complete checkpoint yet: continue training, or give another path"
            )
        yield checkpoints, step
