"""The one place where a recipe's strings and numbers become objects."""

from __future__ import annotations

import os
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from tsm_jax.config import Plan, peak_learning_rate
from tsm_jax.data.clips import EvalClips, TrainClips
from tsm_jax.data.lists import read_frame_list, read_video_list
from tsm_jax.data.packed import open_packed
from tsm_jax.data.pipeline import HostShare, Reading
from tsm_jax.data.protocols import EvalProtocol, eval_protocol
from tsm_jax.data.sources import FrameSource, Source, SyntheticSource, VideoSource
from tsm_jax.models.network import Network
from tsm_jax.models.tsm import TSM
from tsm_jax.training.optimizer import make_optimizer, make_schedule
from tsm_jax.weights.model_directory import Architecture, Preprocessing

SYNTHETIC_CLIPS = 1024


def architecture_of(model: ConfigDict) -> Architecture:
    """The part of `config.model` that is stored with weights."""
    values: dict[str, Any] = {field.name: model[field.name] for field in fields(Architecture)}
    return Architecture(**values)


def build_network(
    architecture: Architecture,
    dtype: str,
    *,
    data_format: str = "NHWC",
    dropout: float = 0.0,
    batch_norm_group: int = 0,
    remat: bool = False,
) -> Network:
    """The network of an architecture, computing in `config.dtype`."""
    model = partial(
        TSM,
        **asdict(architecture),
        data_format=data_format,
        dropout=dropout,
        batch_norm_group=batch_norm_group,
        remat=remat,
        dtype=resolve_dtype(dtype),
    )
    return Network(lambda rngs: model(rngs=rngs))


def build_training_network(config: ConfigDict) -> Network:
    """The network of a recipe as it trains."""
    return build_network(
        architecture_of(config.model),
        config.dtype,
        data_format=config.model.data_format,
        dropout=config.model.dropout,
        batch_norm_group=config.model.batch_norm_group,
        remat=config.remat,
    )


def resolve_dtype(dtype: str) -> jnp.dtype:
    """`auto` is bfloat16 where the hardware has it (GPU, TPU) and float32 on CPU."""
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(dtype)


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


def build_source(data: ConfigDict, split: str, num_classes: int) -> Source:
    """The clips of `config.data.train_list` or `.val_list`.

    Args:
        data: `config.data`.
        split: `train` or `val`.
        num_classes: labels are below it.
    """
    list_path = data.train_list if split == "train" else data.val_list
    prefix = data.prefix or (os.path.dirname(list_path) if data.render else "")
    if data.source == "synthetic":
        return SyntheticSource(SYNTHETIC_CLIPS, num_classes)
    if data.source == "packed":
        return open_packed(list_path, num_classes)
    if data.source == "frames":
        entries = read_frame_list(
            list_path, prefix=prefix, suffix=data.suffix, num_classes=num_classes
        )
        return FrameSource(entries, data.frame_template)
    entries = read_video_list(list_path, prefix=prefix, suffix=data.suffix, num_classes=num_classes)
    return VideoSource(entries)


def build_train_clips(config: ConfigDict, source: Source) -> TrainClips:
    """The reader of augmented training clips."""
    return TrainClips(
        source,
        num_segments=config.model.num_segments,
        crop_size=config.data.crop_size,
        flip=config.data.flip,
        seed=config.seed,
        skip_unreadable=config.data.on_error == "skip",
    )


def build_eval_clips(
    source: Source, preprocessing: Preprocessing, num_segments: int, protocol: str = ""
) -> EvalClips:
    """The reader of clips that are evaluated, as `build_protocol` says."""
    return EvalClips(source, num_segments, build_protocol(preprocessing, protocol))


def build_protocol(preprocessing: Preprocessing, protocol: str = "") -> EvalProtocol:
    """The frames and pixels that a network is shown: its own protocol, or the one of that name."""
    return eval_protocol(
        protocol or preprocessing.protocol,
        short_side=preprocessing.short_side,
        crop_size=preprocessing.crop_size,
    )


def preprocessing_of(data: ConfigDict) -> Preprocessing:
    """The part of `config.data` that is stored with weights."""
    return Preprocessing(crop_size=data.crop_size, short_side=data.short_side)


def build_reading(config: ConfigDict) -> Reading:
    """How this process reads."""
    return Reading(threads=config.data.threads, workers=config.data.workers)


def host_share() -> HostShare:
    """This process's part of every batch."""
    return HostShare(jax.process_index(), jax.process_count())
