"""Where a recipe's strings and numbers become a network, its optimizer and its steps."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tsm_jax.config import Plan, peak_learning_rate
from tsm_jax.data.protocols import Preprocessing
from tsm_jax.models.architecture import Architecture
from tsm_jax.models.network import Network, build_network
from tsm_jax.training.optimizer import make_optimizer, make_schedule
from tsm_jax.training.steps import EvalStep, TrainStep, make_eval_step, make_train_step


def architecture_of(model: ConfigDict) -> Architecture:
    """The part of `config.model` that is stored with weights."""
    values: dict[str, Any] = {field.name: model[field.name] for field in fields(Architecture)}
    return Architecture(**values)


def preprocessing_of(data: ConfigDict) -> Preprocessing:
    """The part of `config.data` that is stored with weights."""
    return Preprocessing(crop_size=data.crop_size, short_side=data.short_side)


def build_training_network(config: ConfigDict) -> Network:
    """The network of a recipe as it trains."""
    return build_network(
        architecture_of(config.model),
        config.dtype,
        dropout=config.model.dropout,
        batch_norm_group=config.model.batch_norm_group,
        remat=config.remat,
    )


def build_schedule(config: ConfigDict, plan: Plan) -> optax.Schedule:
    """The learning rate by step."""
    optimizer = config.optimizer
    return make_schedule(
        peak_learning_rate(config),
        schedule=optimizer.schedule,
        boundaries=plan.boundaries,
        decay_factor=optimizer.decay_factor,
        warmup_steps=plan.warmup_steps,
        total_steps=plan.total_steps,
    )


def build_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer of `config.optimizer`."""
    optimizer = config.optimizer
    return make_optimizer(
        schedule,
        momentum=optimizer.momentum,
        weight_decay=optimizer.weight_decay,
        decay=optimizer.decay,
        clip_norm=optimizer.clip_norm,
        fc_weight_multiplier=optimizer.fc_weight_multiplier,
        fc_bias_multiplier=optimizer.fc_bias_multiplier,
    )


@dataclass(frozen=True)
class Steps:
    """What a recipe runs on the devices."""

    network: Network
    optimizer: optax.GradientTransformation
    train_step: TrainStep
    eval_step: EvalStep


def build_steps(config: ConfigDict, plan: Plan, mesh: Mesh) -> Steps:
    """The network of a recipe and its two steps on some devices."""
    network = build_training_network(config)
    schedule = build_schedule(config, plan)
    optimizer = build_optimizer(config, schedule)
    train_step = make_train_step(
        network,
        optimizer,
        schedule,
        mesh=mesh,
        seed=config.seed,
        label_smoothing=config.label_smoothing,
        accumulation_steps=config.accumulation_steps,
        deterministic=config.deterministic,
        max_bad_steps=config.max_bad_steps,
    )
    eval_step = make_eval_step(
        network,
        mesh=mesh,
        deterministic=config.deterministic,
    )
    return Steps(network, optimizer, train_step, eval_step)
