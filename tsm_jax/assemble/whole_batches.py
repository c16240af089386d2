"""Computations of a recipe from whole batches: batch-norm statistics and the classifier."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tsm_jax.assemble.data import clips_by_class, read_eval_batches, read_train_batches
from tsm_jax.assemble.network import preprocessing_of
from tsm_jax.config import part_size
from tsm_jax.data.protocols import protocol_of
from tsm_jax.data.sources import EvalClips, Source, TrainClips
from tsm_jax.models.architecture import CLASSIFIER, CLASSIFIER_BIAS
from tsm_jax.models.network import Network
from tsm_jax.training.loop import FromBatches
from tsm_jax.training.mesh import eval_batch_size, put_batch, put_replicated
from tsm_jax.training.metrics import class_weights
from tsm_jax.training.processes import compiled_together
from tsm_jax.training.state import TrainState
from tsm_jax.training.whole_batches import (
    Moments,
    fit_classifier,
    make_moments_step,
    make_statistics_step,
)


def statistics(
    config: ConfigDict, mesh: Mesh, network: Network, clips: TrainClips, batches: int
) -> FromBatches:
    """Returns a function that averages batch-norm statistics over the batches of the next steps.

    Reference: PaddleVideo utils/precise_bn.py, which makes another pass over the data.
    """
    statistics_step = make_statistics_step(
        network,
        mesh=mesh,
        seed=config.seed,
        mixup=config.mixup,
        accumulation_steps=config.accumulation_steps,
        deterministic=config.deterministic,
    )
    statistics_step = compiled_together(statistics_step, "batch-norm step")

    def compute(state: TrainState, step: int, before_batch: Callable[[], None]) -> TrainState:
        found = []
        steps = range(step, step + batches)
        for number, batch in zip(steps, read_train_batches(config, clips, steps), strict=True):
            before_batch()
            place = put_replicated(np.int32(number), mesh)
            of_batch = statistics_step(state.params, place, put_batch(batch, mesh))
            found.append(jax.device_get(of_batch))
        means = {
            name: np.mean([each[name] for each in found], 0, np.float64).astype(np.float32)
            for name in state.batch_stats
        }
        return state._replace(batch_stats=put_replicated(means, mesh))

    return compute


def refit(config: ConfigDict, mesh: Mesh, network: Network, source: Source) -> FromBatches:
    """Returns a function that fits the classifier to the training clips without augmentation.

    All classes have the same weight.
    """
    clips = EvalClips(
        source,
        config.model.num_segments,
        protocol_of(preprocessing_of(config.data)),
        skip_unreadable=config.data.on_error == "skip",
    )
    batch_size = eval_batch_size(part_size(config), len(source), mesh)

    def compute(state: TrainState, step: int, before_batch: Callable[[], None]) -> TrainState:
        moments_step = make_moments_step(
            network,
            class_weights(clips_by_class(config, source), 1.0),
            mesh=mesh,
            deterministic=config.deterministic,
        )
        moments_step = compiled_together(moments_step, "classifier step")
        sums = Moments(0.0, 0.0)
        for batch in read_eval_batches(config, clips, batch_size):
            before_batch()
            found = moments_step(state.params, state.batch_stats, put_batch(batch, mesh))
            sums = Moments(*map(partial(np.add, dtype=np.float64), sums, found))
        before = (np.asarray(state.params[name]) for name in (CLASSIFIER, CLASSIFIER_BIAS))
        fitted = fit_classifier(sums, len(source), config.refit_classifier, *before)
        fitted = dict(zip((CLASSIFIER, CLASSIFIER_BIAS), fitted, strict=True))
        return state._replace(params={**state.params, **put_replicated(fitted, mesh)})

    return compute
