"""A training run from a recipe: builds everything, and continues what is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
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
    preprocessing_of,
    with_num_classes,
)
from tsm_jax.assemble.network import Steps, architecture_of, build_steps
from tsm_jax.assemble.weights import load_tensors
from tsm_jax.assemble.workdir import provenance_of
from tsm_jax.config import make_plan, part_size
from tsm_jax.data.clips import EvalClips
from tsm_jax.data.lists import count_shared
from tsm_jax.data.pipeline import TrainOrder, eval_batches, train_batches
from tsm_jax.data.sources import Source
from tsm_jax.files import write_text
from tsm_jax.models.network import resolve_dtype
from tsm_jax.training.checkpoint import Checkpoints, check_same_run
from tsm_jax.training.evaluation import evaluate
from tsm_jax.training.loop import train
from tsm_jax.training.mesh import check_batch, eval_batch_size, make_mesh
from tsm_jax.training.preemption import Preemption
from tsm_jax.training.processes import check_shared, compiled_together, from_first
from tsm_jax.training.run import Run, Validate
from tsm_jax.training.run_log import RunLog
from tsm_jax.training.state import TrainState, abstract_state, init_state
from tsm_jax.training.steps import EvalStep
from tsm_jax.weights.model_directory import LABELS_FILE, Model
from tsm_jax.weights.start import choose_start


def train_recipe(
    config: ConfigDict, mesh: Mesh | None = None, preemption: Preemption | None = None
) -> TrainState:
    """Trains `config` in `config.workdir`, or continues the run that is there.

    Args:
        config: a validated recipe.
        mesh: the devices, by default all.
        preemption: entered, by the caller, to stop when a scheduler wants the machine back.

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
    plan = make_plan(config, len(train_source))
    order = TrainOrder(len(train_source), config.batch_size, config.seed)
    labels = class_names(config)

    steps = build_steps(config, plan, mesh)
    train_step = compiled_together(steps.train_step, "training step")
    eval_step = compiled_together(steps.eval_step, "evaluation step")
    eval_clips = build_eval_clips(
        val_source, preprocessing_of(config.data), config.model.num_segments
    )

    checkpoints = Checkpoints(config.workdir)
    try:
        state, first_step, saved, origin = _start(checkpoints, config, steps, mesh)
        checkpoints.choose_best_by(config.best_metric)
        writes = jax.process_index() == 0
        if writes:
            text = "".join(f"{label}\n" for label in labels)
            write_text(os.path.join(config.workdir, LABELS_FILE), text)
        with RunLog(
            config.workdir,
            first_step=first_step,
            total_steps=plan.total_steps,
            validated=checkpoints.validated(first_step),
            enabled=writes,
        ) as log:
            log.say(_headline(config, mesh, len(train_source), len(val_source)))
            if shared := _count_shared(config, train_source, val_source):
                log.say(f"warning: {shared} clips are both in the training and the validation list")
            if late := _boundaries_after_the_run(config):
                log.say(f"config.optimizer.boundaries {late} are not within {config.epochs} epochs")
            log.say(f"{origin}; compiling the first step")
            validate = _validation(config, mesh, eval_step, eval_clips, log)
            batches = train_batches(
                build_train_clips(config, train_source),
                order,
                batch_size=config.batch_size,
                steps=range(first_step, plan.total_steps),
                reading=build_reading(config),
                host=host_share(),
            )
            run = Run(
                config=config,
                plan=plan,
                mesh=mesh,
                order=order,
                clip_name=train_source.name,
                class_names=labels,
                first_step=first_step,
                train_step=train_step,
                validate=validate,
                checkpoints=checkpoints,
                log=log,
                preemption=preemption or Preemption(),
            )
            state = train(run, state, batches, saved)
            _say_goodbye(log, checkpoints, config)
            if writes:
                _write_card(checkpoints, config, labels, state, len(train_source))
    finally:
        checkpoints.close()
    return state


def _start(
    checkpoints: Checkpoints, config: ConfigDict, steps: Steps, mesh: Mesh
) -> tuple[TrainState, int, dict[str, Any] | None, str]:
    """The state to train from, its step and progress, and where they come from in words.

    The newest checkpoint of this run; else `config.init_from`; else random weights. The step is
    told besides, because to ask the state for it is to wait until its weights are drawn.
    """
    latest = checkpoints.latest_step()
    step = from_first(-1 if latest is None else latest)
    if step >= 0:
        check_same_run(checkpoints.recipe(step), config, config.workdir)
        like = abstract_state(steps.network, steps.optimizer, mesh)
        state, progress = checkpoints.restore(step, like)
        return state, step, progress, f"continuing {config.workdir} at step {step}"
    if not config.init_from:
        state = init_state(steps.network, steps.optimizer, config.seed, mesh)
        return state, 0, None, "starting from random weights"
    start = choose_start(
        load_tensors(config.init_from),
        {**steps.network.param_shapes, **steps.network.batch_stat_shapes},
        with_head=config.init_head,
        ignore=config.init_ignore,
        source=config.init_from,
    )
    state = init_state(steps.network, steps.optimizer, config.seed, mesh, start.loaded)
    return state, 0, None, f"starting from {config.init_from}: {start}"


def _validation(
    config: ConfigDict, mesh: Mesh, eval_step: EvalStep, clips: EvalClips, log: RunLog
) -> Validate:
    wanted = min(config.eval_batch_size or part_size(config), len(clips.source))
    batch_size = eval_batch_size(wanted, mesh)

    def validate(state: TrainState, on_batch: Callable[[], None]) -> dict[str, float]:
        batches = eval_batches(
            clips,
            batch_size=batch_size,
            reading=build_reading(config),
            host=host_share(),
        )
        with log.validation(-(-len(clips.source) // batch_size)) as advance:

            def after_batch() -> None:
                advance()
                on_batch()

            return evaluate(
                eval_step, state.params, state.batch_stats, batches, mesh, on_batch=after_batch
            )

    return validate


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
    provenance = provenance_of(checkpoints, step, config, config.workdir)
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


def _count_shared(config: ConfigDict, train_source: Source, val_source: Source) -> int:
    if config.data.source == "synthetic":
        return 0
    return count_shared(
        *(map(source.name, range(len(source))) for source in (train_source, val_source))
    )


def _headline(config: ConfigDict, mesh: Mesh, train_clips: int, val_clips: int) -> str:
    model = config.model
    device = mesh.devices.flat[0]
    return (
        f"{architecture_of(model)} (shift {model.shift}), {model.num_segments} segments of"
        f" {config.data.crop_size} px, {resolve_dtype(config.dtype)}, on {mesh.size} x"
        f" {device.device_kind}; {train_clips} training and {val_clips} validation clips"
    )


def _boundaries_after_the_run(config: ConfigDict) -> list[float]:
    """Where the learning rate would step down if the run were longer, as it may become."""
    if config.optimizer.schedule != "step":
        return []
    return [boundary for boundary in config.optimizer.boundaries if boundary >= config.epochs]


def _say_goodbye(log: RunLog, checkpoints: Checkpoints, config: ConfigDict) -> None:
    best_step = checkpoints.best_step()
    if best_step is None:
        log.say("training finished: no validation had a finite loss, so there is no best model")
        return
    metric = checkpoints.best_metric
    log.say(
        f"training finished: best {metric} {checkpoints.metrics(best_step)[metric]:.5f}, saved in"
        f" {checkpoints.path(best_step)}"
    )
    log.say(f"next: python -m tsm_jax.predict --model {config.workdir} --input VIDEO")
