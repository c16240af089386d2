"""A training run from a recipe: builds everything, and continues what is there."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tsm_jax.assemble.data import (
    build_eval_clips,
    build_reading,
    build_source,
    build_train_clips,
    class_names,
    ensure_rendered,
    host_share,
    with_frame_rate,
    with_num_classes,
)
from tsm_jax.assemble.network import Steps, architecture_of, build_steps
from tsm_jax.assemble.probe_result import known_probe
from tsm_jax.assemble.start import load_start
from tsm_jax.assemble.workdir import preprocessing_of
from tsm_jax.config import make_plan, part_size
from tsm_jax.data.pipeline import Batch, TrainOrder, eval_batches, train_batches
from tsm_jax.data.sources import Source, TrainClips
from tsm_jax.files import write_lines, write_text
from tsm_jax.models.architecture import CLASSIFIER, CLASSIFIER_BIAS
from tsm_jax.models.network import Network, resolve_dtype
from tsm_jax.terminal import printable, typed
from tsm_jax.training.checkpoint import Checkpoints, check_same_run
from tsm_jax.training.log import Logger, Progress, RunLog
from tsm_jax.training.loop import FromBatches, TrainingRun, Validate, train
from tsm_jax.training.mesh import check_batch, eval_batch_size, make_mesh, put_batch
from tsm_jax.training.metrics import class_weights
from tsm_jax.training.preemption import Preemption
from tsm_jax.training.processes import check_shared, compiled_together, from_first
from tsm_jax.training.refit import Moments, fit_classifier, make_moments_step
from tsm_jax.training.state import TrainState, abstract_state, init_state, put_replicated
from tsm_jax.training.steps import EvalStep, StatisticsStep, evaluate
from tsm_jax.weights.model_directory import LABELS_FILE, Model


def train_recipe(
    config: ConfigDict,
    mesh: Mesh | None = None,
    preemption: Preemption | None = None,
    loggers: Sequence[Callable[[ConfigDict], Logger]] = (),
) -> TrainState:
    """Trains `config` in `config.workdir`, or continues the run that is there.

    Args:
        config: a validated recipe.
        mesh: the devices, by default all.
        preemption: entered, by the caller, to stop when a scheduler wants the machine back.
        loggers: each is called with the recipe, in the first process only, and gives what receives
            the run's numbers besides metrics.jsonl and TensorBoard.

    Returns:
        The state after the last step.

    Raises:
        UserError: the recipe, a list or a clip cannot be used; something cannot be written; the
            loss is not finite (then it is `Diverged`).
        Preempted: `preemption` noted a signal; everything is saved.
    """
    mesh = mesh or make_mesh()
    check_batch(part_size(config), config.model.batch_norm_group, mesh)
    check_shared(config.workdir)
    ensure_rendered(config)
    config = with_num_classes(config)
    train_source = build_source(config.data, "train", config.model.num_classes)
    val_source = build_source(config.data, "val", config.model.num_classes)
    config = with_frame_rate(config, train_source)
    plan = make_plan(config, len(train_source))
    order = TrainOrder(len(train_source), config.batch_size, config.seed)
    labels = class_names(config)
    train_clips = build_train_clips(config, train_source)

    def batches_of(steps: range) -> Iterator[Batch]:
        return train_batches(
            train_clips,
            order,
            batch_size=config.batch_size,
            steps=steps,
            reading=build_reading(config),
            host=host_share(),
        )

    batch_norm_batches = min(config.precise_batch_norm_batches, plan.steps_per_epoch)
    steps = build_steps(config, plan, mesh, _class_weights(config, train_source))
    with closing(Checkpoints(config.workdir)) as checkpoints:
        state, first_step, saved, origin = _start(checkpoints, config, labels, steps, mesh)
        checkpoints.choose_best_by(config.best_metric)
        writes = jax.process_index() == 0
        if writes:
            write_lines(os.path.join(config.workdir, LABELS_FILE), labels)
        with RunLog(
            config.workdir,
            first_step=first_step,
            validated=checkpoints.validated(first_step),
            enabled=writes,
            loggers=[connect(config) for connect in loggers] if writes else (),
        ) as log:
            for line in (*_first_lines(config, mesh, train_clips, labels, val_source), *origin):
                log.say(line)
            if probe := known_probe(config.workdir):
                log.say(f"to be above: {probe}")
            log.say("compiling the first step")
            run = TrainingRun(
                config=config,
                plan=plan,
                mesh=mesh,
                class_names=labels,
                first_step=first_step,
                train_step=compiled_together(steps.train_step, "training step"),
                validate=_validation(config, mesh, steps.eval_step, val_source),
                compute_statistics=_statistics(
                    steps.statistics_step,
                    lambda step: batches_of(range(step, step + batch_norm_batches)),
                    mesh,
                ),
                refit_classifier=_refit(config, mesh, steps.network, train_source),
                checkpoints=checkpoints,
                log=log,
                progress=Progress(
                    log,
                    config,
                    plan,
                    order=order,
                    clip_name=train_source.name,
                    val_clips=len(val_source),
                    first_step=first_step,
                    saved=saved,
                ),
                preemption=preemption or Preemption(),
            )
            state = train(run, state, batches_of(range(first_step, plan.total_steps)))
            for line in _last_lines(checkpoints, config):
                log.say(line)
            if writes:
                _write_card(checkpoints, config, labels, state, len(train_source))
    return state


def _class_weights(config: ConfigDict, source: Source) -> np.ndarray | None:
    if config.class_balance == 0:
        return None
    return class_weights(_class_counts(config, source), config.class_balance)


def _class_counts(config: ConfigDict, source: Source) -> list[int]:
    labels = [source.label(index) for index in range(len(source))]
    return np.bincount(labels, minlength=config.model.num_classes).tolist()


def _start(
    checkpoints: Checkpoints, config: ConfigDict, labels: list[str], steps: Steps, mesh: Mesh
) -> tuple[TrainState, int, dict[str, Any] | None, list[str]]:
    """The state to train from, its step and progress, and where they come from in lines.

    The newest checkpoint of this run; else `config.init_from`; else random weights. The step is
    given besides, because to ask the state for it is to wait until its weights are drawn.
    """
    latest = checkpoints.latest_step()
    step = from_first(-1 if latest is None else latest)
    if step >= 0:
        check_same_run(checkpoints.recipe(step), config, config.workdir)
        like = abstract_state(steps.network, steps.optimizer, mesh)
        state, progress = checkpoints.restore(step, like)
        return state, step, progress, [f"continuing {config.workdir} at step {step}"]
    loaded, origin = load_start(config, labels, steps.network)
    state = init_state(steps.network, steps.optimizer, config.seed, mesh, loaded)
    return state, 0, None, origin


def _statistics(
    statistics_step: StatisticsStep, batches_from: Callable[[int], Iterator[Batch]], mesh: Mesh
) -> FromBatches:
    """Means of the statistics of single batches: those that the next steps will train on.

    Reference: PaddleVideo utils/precise_bn.py, which takes another pass over the data.
    """
    statistics_step = compiled_together(statistics_step, "batch-norm step")

    def compute(state: TrainState, step: int, before_batch: Callable[[], None]) -> TrainState:
        found = []
        for number, batch in enumerate(batches_from(step), start=step):
            before_batch()
            place = put_replicated(np.int32(number), mesh)
            statistics = statistics_step(state.params, place, put_batch(batch, mesh))
            found.append(jax.device_get(statistics))
        means = {
            name: np.mean([each[name] for each in found], 0, np.float64).astype(np.float32)
            for name in state.batch_stats
        }
        return state._replace(batch_stats=put_replicated(means, mesh))

    return compute


def _refit(config: ConfigDict, mesh: Mesh, network: Network, source: Source) -> FromBatches:
    """The classifier from the training clips without augmentation; every class counts alike."""
    plain = build_eval_clips(source, preprocessing_of(config.data), config.model.num_segments)
    clips = replace(plain, skip_unreadable=config.data.on_error == "skip")
    batch_size = eval_batch_size(part_size(config), len(source), mesh)

    def compute(state: TrainState, step: int, before_batch: Callable[[], None]) -> TrainState:
        moments_step = make_moments_step(
            network,
            class_weights(_class_counts(config, source), 1.0),
            mesh=mesh,
            deterministic=config.deterministic,
        )
        moments_step = compiled_together(moments_step, "classifier step")
        sums = Moments(0.0, 0.0)
        for batch in eval_batches(
            clips, batch_size=batch_size, reading=build_reading(config), host=host_share()
        ):
            before_batch()
            found = moments_step(state.params, state.batch_stats, put_batch(batch, mesh))
            sums = Moments(*map(partial(np.add, dtype=np.float64), sums, found))
        before = (np.asarray(state.params[name]) for name in (CLASSIFIER, CLASSIFIER_BIAS))
        fitted = fit_classifier(sums, len(source), config.refit_classifier, *before)
        fitted = dict(zip((CLASSIFIER, CLASSIFIER_BIAS), fitted, strict=True))
        return state._replace(params={**state.params, **put_replicated(fitted, mesh)})

    return compute


def _validation(config: ConfigDict, mesh: Mesh, eval_step: EvalStep, source: Source) -> Validate:
    clips = build_eval_clips(source, preprocessing_of(config.data), config.model.num_segments)
    batch_size = eval_batch_size(config.eval_batch_size or part_size(config), len(source), mesh)
    eval_step = compiled_together(eval_step, "evaluation step")

    def validate(state: TrainState, on_batch: Callable[[int, int], None]) -> dict[str, float]:
        batches = eval_batches(
            clips,
            batch_size=batch_size,
            reading=build_reading(config),
            host=host_share(),
        )
        done = itertools.count(1)

        def after_batch() -> None:
            on_batch(next(done), -(-len(source) // batch_size))

        return evaluate(
            eval_step, state.params, state.batch_stats, batches, mesh, on_batch=after_batch
        )

    return validate


def _first_lines(
    config: ConfigDict, mesh: Mesh, train_clips: TrainClips, labels: list[str], val_source: Source
) -> Iterator[str]:
    """What is trained, on what, and what may be wrong with it."""
    model, device = config.model, mesh.devices.flat[0]
    train_source = train_clips.source
    yield (
        f"{architecture_of(model)} (shift {model.shift}), {model.num_segments} segments of"
        f" {config.data.crop_size} px, {resolve_dtype(config.dtype)}, on {mesh.size} x"
        f" {device.device_kind}; {len(train_source)} training and {len(val_source)} validation"
        " clips"
    )
    if config.data.source != "synthetic":
        train, val = (set(map(s.name, range(len(s)))) for s in (train_source, val_source))
        if shared := len(train & val):
            yield f"warning: {shared} clips are both in the training and the validation list"
    swaps = enumerate(train_clips.mirrored_labels or ())
    if pairs := [f"{labels[a]} <-> {labels[b]}" for a, b in swaps if a < b]:
        yield f"mirrored clips swap their labels: {printable(', '.join(pairs))}"
    if config.optimizer.schedule == "step":
        # Where the learning rate would step down if the run were longer, as it may become.
        late = [epoch for epoch in config.optimizer.boundaries if epoch >= config.epochs]
        if late:
            yield f"config.optimizer.boundaries {late} are not within {config.epochs} epochs"


def _last_lines(checkpoints: Checkpoints, config: ConfigDict) -> Iterator[str]:
    best_step = checkpoints.best_step()
    if best_step is None:
        yield "training finished: no validation had a finite loss, so there is no best model"
        return
    metric = checkpoints.best_metric
    yield (
        f"training finished: best {metric} {checkpoints.metrics(best_step)[metric]:.5f}, saved in"
        f" {checkpoints.path(best_step)}"
    )
    yield f"next: {typed('predict')} --model {config.workdir} --input VIDEO"


def _write_card(
    checkpoints: Checkpoints,
    config: ConfigDict,
    labels: list[str],
    state: TrainState,
    train_clips: int,
) -> None:
    """The card of the best checkpoint, beside the checkpoints."""
    # Late: jinja2 would take every start 0.05 s.
    from tsm_jax.exporting.model_card import CARD_FILE, model_card

    step = checkpoints.best_step()
    if step is None:
        return
    provenance = checkpoints.provenance(step, config)
    model = Model(
        architecture=architecture_of(config.model),
        preprocessing=preprocessing_of(config.data),
        labels=labels,
        tensors=jax.device_get(state.params),  # for their number
        provenance={**provenance, "train_clips": train_clips},
    )
    title = os.path.basename(os.path.normpath(config.workdir))
    card = model_card(model, title=title, path=config.workdir)
    write_text(os.path.join(config.workdir, CARD_FILE), card)
