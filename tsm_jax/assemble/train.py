"""A training run from a recipe: builds everything, or continues an existing run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tsm_jax.assemble.data import (
    build_source,
    build_train_clips,
    class_names,
    clips_by_class,
    ensure_rendered,
    read_eval_batches,
    read_train_batches,
    with_frame_rate,
    with_num_classes,
)
from tsm_jax.assemble.network import Steps, architecture_of, build_steps, preprocessing_of
from tsm_jax.config import PROBE_FILE, Plan, make_plan, part_size
from tsm_jax.data.pipeline import TrainOrder
from tsm_jax.data.protocols import protocol_of
from tsm_jax.data.sources import EvalClips, Source, TrainClips
from tsm_jax.files import write_lines, write_text
from tsm_jax.models.network import Network, resolve_dtype
from tsm_jax.terminal import printable, typed
from tsm_jax.training.checkpoint import Checkpoints, check_same_run
from tsm_jax.training.log import Logger, RunLog
from tsm_jax.training.loop import FromBatches, TrainingRun, Validate, train
from tsm_jax.training.mesh import check_batch, eval_batch_size, make_mesh
from tsm_jax.training.metrics import class_weights
from tsm_jax.training.preemption import Preemption
from tsm_jax.training.processes import check_shared, compiled_together, from_first
from tsm_jax.training.progress import Progress
from tsm_jax.training.state import TrainState, abstract_state, init_state
from tsm_jax.training.steps import EvalStep, evaluate
from tsm_jax.weights.model_directory import LABELS_FILE, Model


def train_recipe(
    config: ConfigDict,
    mesh: Mesh | None = None,
    preemption: Preemption | None = None,
    loggers: Sequence[Callable[[ConfigDict], Logger]] = (),
) -> TrainState:
    """Trains a recipe in its workdir, or continues the run there; returns the final state.

    Args:
        config: the recipe.
        mesh: the devices; None for all devices of all processes.
        preemption: stops the run when a scheduler reclaims the machine; the caller must have
            entered it.
        loggers: called with the recipe, in the first process only; each returns a receiver of the
            run's numbers, besides metrics.jsonl and TensorBoard.

    Raises:
        UserError: the recipe, a list or a clip cannot be used; a file cannot be written; the loss
            is not finite (`Diverged`).
        Preempted: `preemption` received a signal; the checkpoints are on disk.
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
    labels = class_names(config)
    train_clips = build_train_clips(config, train_source)
    weights = None
    if config.class_balance:
        weights = class_weights(clips_by_class(config, train_source), config.class_balance)
    steps = build_steps(config, plan, mesh, weights)
    compute_statistics, refit_classifier = _from_batches(
        config, plan, mesh, steps.network, train_clips
    )
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
            if os.path.isfile(os.path.join(config.workdir, PROBE_FILE)):
                from tsm_jax.assemble.probe import known_probe  # late: few runs have one

                log.say(f"baseline to beat: {known_probe(config.workdir)}")
            log.say("compiling the first step")
            run = TrainingRun(
                config=config,
                plan=plan,
                mesh=mesh,
                class_names=labels,
                first_step=first_step,
                train_step=compiled_together(steps.train_step, "training step"),
                validate=_validation(config, mesh, steps.eval_step, val_source),
                compute_statistics=compute_statistics,
                refit_classifier=refit_classifier,
                checkpoints=checkpoints,
                log=log,
                progress=Progress(
                    log,
                    config,
                    plan,
                    order=TrainOrder(len(train_source), config.batch_size, config.seed),
                    clip_name=train_source.name,
                    val_clips=len(val_source),
                    first_step=first_step,
                    saved=saved,
                ),
                preemption=preemption or Preemption(),
            )
            to_do = range(first_step, plan.total_steps)
            state = train(run, state, read_train_batches(config, train_clips, to_do))
            for line in _last_lines(checkpoints, config):
                log.say(line)
            if writes:
                _write_card(checkpoints, config, labels, state, len(train_source))
    return state


def _from_batches(
    config: ConfigDict, plan: Plan, mesh: Mesh, network: Network, clips: TrainClips
) -> tuple[FromBatches | None, FromBatches | None]:
    """Returns the computations of batch-norm statistics and classifier, None if not requested."""
    batches = min(config.precise_batch_norm_batches, plan.steps_per_epoch)
    if not config.precise_batch_norm and not config.refit_classifier:
        return None, None
    from tsm_jax.assemble.whole_batches import refit, statistics  # late: few recipes use them

    return (
        statistics(config, mesh, network, clips, batches) if config.precise_batch_norm else None,
        refit(config, mesh, network, clips.source) if config.refit_classifier else None,
    )


def _start(
    checkpoints: Checkpoints, config: ConfigDict, labels: list[str], steps: Steps, mesh: Mesh
) -> tuple[TrainState, int, dict[str, Any] | None, list[str]]:
    """Returns the state to train from, its step and progress, and log lines about its origin.

    The origin is the newest checkpoint of this run, else `config.init_from`, else random weights.
    The step is returned separately, because reading it from the state would wait until the weights
    are drawn.
    """
    latest = checkpoints.latest_step()
    step = from_first(-1 if latest is None else latest)
    if step >= 0:
        check_same_run(checkpoints.recipe(step), config, config.workdir)
        like = abstract_state(steps.network, steps.optimizer, mesh)
        state, progress = checkpoints.restore(step, like)
        return state, step, progress, [f"continuing {config.workdir} at step {step}"]
    loaded, origin = None, ["starting from random weights"]
    if config.init_from:
        # Late: without `init_from`, neither readers of other formats nor downloads are needed.
        from tsm_jax.assemble.weights import load_start

        loaded, origin = load_start(config, labels, steps.network)
    state = init_state(steps.network, steps.optimizer, config.seed, mesh, loaded)
    return state, 0, None, origin


def _validation(config: ConfigDict, mesh: Mesh, eval_step: EvalStep, source: Source) -> Validate:
    protocol = protocol_of(preprocessing_of(config.data))
    clips = EvalClips(source, config.model.num_segments, protocol)
    batch_size = eval_batch_size(config.eval_batch_size or part_size(config), len(source), mesh)
    eval_step = compiled_together(eval_step, "evaluation step")

    def validate(state: TrainState, on_batch: Callable[[int, int], None]) -> dict[str, float]:
        return evaluate(
            eval_step,
            state.params,
            state.batch_stats,
            read_eval_batches(config, clips, batch_size),
            mesh,
            on_batch=lambda done: on_batch(done, -(-len(source) // batch_size)),
        )

    return validate


def _first_lines(
    config: ConfigDict, mesh: Mesh, train_clips: TrainClips, labels: list[str], val_source: Source
) -> Iterator[str]:
    """Yields what is trained and on what, and warnings about likely mistakes."""
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
            yield f"warning: {shared} clips are in both the training and the validation list"
    swaps = enumerate(train_clips.mirrored_labels or ())
    if pairs := [f"{labels[a]} <-> {labels[b]}" for a, b in swaps if a < b]:
        yield f"mirrored clips swap their labels: {printable(', '.join(pairs))}"
    if config.optimizer.schedule == "step":
        # The learning rate would step down there if the run were longer, as it may become.
        late = [epoch for epoch in config.optimizer.boundaries if epoch >= config.epochs]
        if late:
            yield f"config.optimizer.boundaries {late} are not reached in {config.epochs} epochs"


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
    """Writes the model card of the best checkpoint to the workdir."""
    # Late: importing jinja2 would add 0.05 s to every start.
    from tsm_jax.exporting.model_card import CARD_FILE, model_card

    step = checkpoints.best_step()
    if step is None:
        return
    provenance = checkpoints.provenance(step, config)
    model = Model(
        architecture=architecture_of(config.model),
        preprocessing=preprocessing_of(config.data),
        labels=labels,
        tensors=jax.device_get(state.params),  # only counted
        provenance={**provenance, "train_clips": train_clips},
    )
    title = os.path.basename(os.path.normpath(config.workdir))
    card = model_card(model, title=title, path=config.workdir)
    write_text(os.path.join(config.workdir, CARD_FILE), card)
