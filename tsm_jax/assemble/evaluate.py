"""Evaluation of stored weights on the validation list of a recipe."""

from __future__ import annotations

import os

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from tsm_jax.assemble.data import build_source, ensure_rendered, read_eval_batches
from tsm_jax.assemble.weights import is_workdir, load_model, read_recipe
from tsm_jax.config import part_size
from tsm_jax.data.protocols import protocol_of
from tsm_jax.data.sources import EvalClips
from tsm_jax.errors import UserError
from tsm_jax.models.network import build_network, resolve_dtype
from tsm_jax.report.comparison import Answers, is_report, read_answers
from tsm_jax.report.results import Evaluation
from tsm_jax.terminal import progress
from tsm_jax.training.mesh import eval_batch_size, make_mesh, replicated
from tsm_jax.training.processes import compiled_together
from tsm_jax.training.steps import evaluate, make_eval_step
from tsm_jax.weights.labels import check_same_order, read_labels
from tsm_jax.weights.model_directory import LABELS_FILE, Model, check_tensors


def evaluate_weights(
    config: ConfigDict | None, weights: str | None, *, average: str | None = None
) -> Evaluation:
    """Evaluates weights on every clip of a validation list once.

    Args:
        config: the recipe with the validation list; None for the recipe of the run in `weights`.
        weights: anything that `tsm_jax.load` accepts; None for `config.workdir`.
        average: as for `evaluate_model`.

    Raises:
        UserError: the weights, the list or a clip cannot be read.
    """
    recipe = config if config is not None else _recipe_of(weights or "")
    weights = weights or recipe.workdir
    model = load_model(weights, num_segments=recipe.model.num_segments)
    return evaluate_model(recipe, model, weights=weights, average=average)


def evaluate_both(
    config: ConfigDict | None, first: str, second: str, *, average: str | None = None
) -> tuple[Evaluation | Answers, Evaluation | Answers]:
    """Evaluates two sets of weights on the same list; a report's folder is read instead.

    Args:
        config: as for `evaluate_weights`; None for the recipe of the first one that is a workdir.
        first: anything that `tsm_jax.load` accepts, or the folder of a report.
        second: the same.
        average: as for `evaluate_model`.

    Raises:
        UserError: the weights, a report, the list or a clip cannot be read.
    """
    weights = [path for path in (first, second) if not is_report(path)]
    if config is None and weights:
        config = _recipe_of(next(filter(is_workdir, weights), weights[0]))
    first_found, second_found = (
        read_answers(path) if is_report(path) else evaluate_weights(config, path, average=average)
        for path in (first, second)
    )
    return first_found, second_found


def _recipe_of(weights: str) -> ConfigDict:
    """Returns the recipe of the run in a workdir."""
    if not is_workdir(weights):
        load_model(weights)  # raises a more specific error if the path is wrong
        raise UserError(f"{weights} has no recipe: give --config with the list to evaluate on")
    return read_recipe(weights)


def evaluate_model(
    config: ConfigDict, model: Model, *, weights: str = "the model", average: str | None = None
) -> Evaluation:
    """Evaluates a loaded model on every clip of `config.data.val_list` once.

    Args:
        config: a recipe; its data, batch size and dtype are used, its model is not.
        model: the network with its weights.
        weights: the name of the model, for messages.
        average: what to average over the views of a clip: `logits` or `probabilities`; None for
            the protocol's choice.

    Raises:
        UserError: the list or a clip cannot be read, or its classes are not those of the model.
    """
    architecture = model.architecture
    if config.model.num_classes not in (0, architecture.num_classes):
        raise UserError(
            f"{weights} has {architecture.num_classes} classes, but the recipe has"
            f" {config.model.num_classes}: evaluate on a list with the classes it was trained on"
        )
    class_names = _class_names(config, model, weights)
    mesh = make_mesh()
    ensure_rendered(config)
    source = build_source(config.data, "val", architecture.num_classes)
    protocol = protocol_of(model.preprocessing, config.data.protocol)
    protocol.check_labels(class_names)
    clips = EvalClips(source, architecture.num_segments, protocol)
    if average is None:
        average = "probabilities" if protocol.average_probabilities else "logits"
    metrics, answers = _evaluate_clips(config, model, clips, mesh, average, weights)
    labels = np.array([source.label(i) for i in range(len(source))], np.int32)
    return Evaluation(
        metrics=metrics,
        model=model,
        weights=weights,
        list_path=config.data.val_list,
        clips=clips,
        average=average,
        dtype=str(resolve_dtype(config.dtype)),
        class_names=class_names,
        labels=labels,
        logits=answers["logits"],
        ranks=answers["rank"],
        right_after=answers.get("right_after"),
    )


def _class_names(config: ConfigDict, model: Model, weights: str) -> list[str]:
    """Returns the recipe's class names, else the model's; checks their order.

    The model's names are compared with those of the recipe, else with those beside the list.
    """
    names = list(model.labels)
    beside = os.path.join(os.path.dirname(config.data.val_list), LABELS_FILE)
    if config.data.labels:
        given = read_labels(config.data.labels, model.architecture.num_classes)
        check_same_order(names, weights, given, config.data.labels)
        return given
    if os.path.isfile(beside):
        check_same_order(names, weights, read_labels(beside), beside)
    return names


def _evaluate_clips(
    config: ConfigDict, model: Model, clips: EvalClips, mesh: Mesh, average: str, weights: str
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns metrics, and the `clips` of the evaluation step in the order of the list."""
    num_clips = len(clips.source)
    batch_size = eval_batch_size(config.eval_batch_size or part_size(config), num_clips, mesh)
    network = build_network(model.architecture, config.dtype)
    check_tensors(model.tensors, {**network.param_shapes, **network.batch_stat_shapes}, weights)
    params, batch_stats = (
        jax.device_put({name: model.tensors[name] for name in shapes}, replicated(mesh))
        for shapes in (network.param_shapes, network.batch_stat_shapes)
    )
    eval_step = make_eval_step(
        network,
        mesh=mesh,
        average_probabilities=average == "probabilities",
        by_frames=model.architecture.shift == "past_only",
        deterministic=config.deterministic,
    )
    eval_step = compiled_together(eval_step, "evaluation step")
    kept: list[dict[str, np.ndarray]] = []

    def keep(clips: dict[str, jax.Array]) -> None:
        mask = np.asarray(clips["mask"])
        kept.append({name: np.asarray(values)[mask] for name, values in clips.items()})

    batches = read_eval_batches(config, clips, batch_size)
    batches = progress(batches, "evaluate", -(-num_clips // batch_size))
    metrics = evaluate(eval_step, params, batch_stats, batches, mesh, on_clips=keep)
    answers = {name: np.concatenate([each[name] for each in kept]) for name in kept[0]}
    scores = answers["logits"]
    if bad := int((~np.isfinite(scores)).any(1).sum()):
        raise UserError(
            f"{weights}: the scores of {bad} of {len(scores)} clips are not finite: the weights are"
            " damaged, or too large for config.dtype"
        )
    return metrics, answers
