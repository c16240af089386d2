"""Builds the network of a recipe, its optimizer and its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tsm_jax.config import Plan, peak_learning_rate
from tsm_jax.errors import UserError
from tsm_jax.models.architecture import CLASSIFIER, Architecture
from tsm_jax.models.network import Network, build_network
from tsm_jax.training.optimizer import is_in, make_optimizer, make_schedule
from tsm_jax.training.steps import EvalStep, TrainStep, make_eval_step, make_train_step

if TYPE_CHECKING:
    from tsm_jax.data.protocols import Preprocessing


def architecture_of(model: ConfigDict) -> Architecture:
    """Returns the part of `config.model` that is stored with weights."""
    values: dict[str, Any] = {field.name: model[field.name] for field in fields(Architecture)}
    return Architecture(**values)


def preprocessing_of(data: ConfigDict) -> Preprocessing:
    """Returns the part of `config.data` that is stored with weights."""
    # Late: steps are also measured on machines that cannot read clips.
    from tsm_jax.data.protocols import Preprocessing

    return Preprocessing(
        crop_size=data.crop_size, short_side=data.short_side, frame_rate=data.frame_rate
    )


def build_training_network(config: ConfigDict) -> Network:
    """Returns the network of a recipe with its options for training."""
    return build_network(
        architecture_of(config.model),
        config.dtype,
        dropout=config.model.dropout,
        batch_norm_group=config.model.batch_norm_group,
        frozen_batch_norm=config.model.frozen_batch_norm,
        running_variance=config.model.running_variance,
        remat=config.remat,
    )


def build_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns the optimizer of `config.optimizer`."""
    optimizer = config.optimizer
    return make_optimizer(
        schedule,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        weight_decay=optimizer.weight_decay,
        decay=optimizer.decay,
        clip_norm=optimizer.clip_norm,
        fc_weight_multiplier=optimizer.fc_weight_multiplier,
        fc_bias_multiplier=optimizer.fc_bias_multiplier,
        frozen=optimizer.frozen,
    )


@dataclass(frozen=True)
class Steps:
    """The computations of a recipe on the devices."""

    network: Network
    optimizer: optax.GradientTransformation
    train_step: TrainStep
    eval_step: EvalStep


def build_steps(
    config: ConfigDict, plan: Plan, mesh: Mesh, class_weights: np.ndarray | None = None
) -> Steps:
    """Builds the network of a recipe and its steps on the devices of a mesh.

    Raises:
        UserError: `config.optimizer.frozen` names something that is not in the network, or freezes
            the whole network or a classifier that is to be refitted.
    """
    network = build_training_network(config)
    _check_frozen(config.optimizer.frozen, network)
    if config.refit_classifier and is_in(CLASSIFIER, config.optimizer.frozen):
        raise UserError(
            f"config.refit_classifier is {config.refit_classifier}, but config.optimizer.frozen"
            " includes the classifier: set the former to 0, or remove the head from the latter"
        )
    schedule = make_schedule(
        peak_learning_rate(config),
        schedule=config.optimizer.schedule,
        boundaries=plan.boundaries,
        decay_factor=config.optimizer.decay_factor,
        warmup_steps=plan.warmup_steps,
        warmup_start=config.optimizer.warmup_start,
        total_steps=plan.total_steps,
    )
    optimizer = build_optimizer(config, schedule)
    train_step = make_train_step(
        network,
        optimizer,
        schedule,
        mesh=mesh,
        seed=config.seed,
        label_smoothing=config.label_smoothing,
        class_weights=class_weights,
        frozen=config.optimizer.frozen,
        mixup=config.mixup,
        accumulation_steps=config.accumulation_steps,
        deterministic=config.deterministic,
        max_bad_steps=config.max_bad_steps,
    )
    eval_step = make_eval_step(network, mesh=mesh, deterministic=config.deterministic)
    return Steps(network, optimizer, train_step, eval_step)


def _check_frozen(frozen: Sequence[str], network: Network) -> None:
    names = list(network.param_shapes)
    for part in frozen:
        if not any(is_in(name, (part,)) for name in names):
            raise UserError(
                f"config.optimizer.frozen contains {part!r}, which is not part of the network: give"
                f" the name of a module or tensor, such as {names[0]} or {names[-1]}"
            )
    if all(is_in(name, frozen) for name in names):
        raise UserError("config.optimizer.frozen names the whole network: nothing would be trained")
