"""Reading the workdir of a training run: its best checkpoint and its recipe."""

from __future__ import annotations

import os
from contextlib import closing

import jax
import numpy as np
from ml_collections import ConfigDict

from tsm_jax.assemble.network import architecture_of, preprocessing_of
from tsm_jax.errors import UserError
from tsm_jax.models.network import build_network
from tsm_jax.training.checkpoint import Checkpoints
from tsm_jax.training.mesh import make_mesh
from tsm_jax.weights.labels import read_labels
from tsm_jax.weights.model_directory import LABELS_FILE, Model
from tsm_jax.weights.tensor_file import check_values


def read_recipe(workdir: str) -> ConfigDict:
    """The recipe of the best checkpoint of a run."""
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        return checkpoints.recipe(_best_step(checkpoints, workdir))


def read_workdir(workdir: str) -> Model:
    """The network of the best checkpoint; of the newest one if there was no validation.

    Raises:
        UserError: there is no complete checkpoint yet, or its recipe or its weights are not those
            of a network.
    """
    with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        step = _best_step(checkpoints, workdir)
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


def _best_step(checkpoints: Checkpoints, workdir: str) -> int:
    step = checkpoints.best_step() or checkpoints.latest_step()
    if step is None:
        raise UserError(f"{workdir} has no complete checkpoint yet: train on, or give another path")
    return step
