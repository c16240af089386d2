"""Evaluation of stored weights on the validation list of a recipe."""

from __future__ import annotations

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import track

from tsm_jax import build
from tsm_jax.data.pipeline import eval_batches
from tsm_jax.errors import UserError
from tsm_jax.loading import is_workdir, load_model
from tsm_jax.render_data import ensure_rendered
from tsm_jax.training.evaluation import evaluate
from tsm_jax.training.mesh import eval_batch_size, make_mesh, replicated
from tsm_jax.training.steps import make_eval_step
from tsm_jax.weights.model_directory import check_tensors
from tsm_jax.workdir import read_recipe


def evaluate_weights(config: ConfigDict | None, weights: str | None) -> dict[str, float]:
    """Evaluates and prints.

    Args:
        config: whose validation list to evaluate on; None for that of the run in `weights`.
        weights: a workdir or a model directory; None for `config.workdir`.

    Returns:
        `top1`, `top5`, `loss` and `count`.

    Raises:
        UserError: the weights, the list or a clip cannot be read.
    """
    if config is None:
        assert weights is not None
        if not is_workdir(weights):
            load_model(weights)  # tells what is wrong with the path, if anything is
            raise UserError(f"{weights} has no recipe: give --config with the list to evaluate on")
        config = read_recipe(weights)
    weights = weights or config.workdir
    model = load_model(weights, num_segments=config.model.num_segments)
    architecture = model.architecture
    if config.model.num_classes not in (0, architecture.num_classes):
        raise UserError(
            f"{weights} has {architecture.num_classes} classes, the recipe"
            f" {config.model.num_classes}: evaluate on a list with the classes it was trained on"
        )

    mesh = make_mesh()
    batch_size = eval_batch_size(config.eval_batch_size or config.batch_size, mesh)
    ensure_rendered(config)
    source = build.build_source(config.data, "val", architecture.num_classes)
    clips = build.build_eval_clips(
        source, model.preprocessing, architecture.num_segments, config.data.protocol
    )
    batches = eval_batches(
        clips,
        batch_size=batch_size,
        reading=build.build_reading(config),
        host=build.host_share(),
    )

    data_format = config.model.data_format
    network = build.build_network(architecture, config.dtype, data_format=data_format)
    check_tensors(model.tensors, {**network.param_shapes, **network.batch_stat_shapes}, weights)
    sharding = replicated(mesh)
    params, batch_stats = (
        jax.device_put({name: model.tensors[name] for name in shapes}, sharding)
        for shapes in (network.param_shapes, network.batch_stat_shapes)
    )
    eval_step = make_eval_step(
        network,
        mesh=mesh,
        data_format=data_format,
        average_probabilities=clips.protocol.average_probabilities,
    )
    num_batches = -(-len(source) // batch_size)
    shown = track(
        batches,
        "evaluate",
        total=num_batches,
        transient=True,
        disable=not Console().is_terminal,
    )
    metrics = evaluate(eval_step, params, batch_stats, shown, mesh)
    if jax.process_index() == 0:
        print(
            f"{weights}: top1 {metrics['top1']:.5f}  top5 {metrics['top5']:.5f}"
            f"  loss {metrics['loss']:.5f}  on {metrics['count']} clips of {config.data.val_list}"
            f" ({clips.protocol.name}: views {clips.protocol.num_views})"
        )
    return metrics
