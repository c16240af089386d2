"""Computations on the devices: training step, evaluation step, and evaluation of all clips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tsm_jax.accuracy import class_metrics
from tsm_jax.models.network import Network, Tensors, normalize
from tsm_jax.training.mesh import AXIS, jit_step, put_batch
from tsm_jax.training.metrics import Meter, class_sums, clip_ranks, clip_sums, cross_entropy
from tsm_jax.training.optimizer import global_norm, is_in
from tsm_jax.training.state import TrainState, skip_bad_step

Batch = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
EvalResult = tuple[dict[str, jax.Array], dict[str, jax.Array]]
EvalStep = Callable[[Tensors, Tensors, Batch], EvalResult]


def make_train_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    mesh: Mesh,
    seed: int,
    label_smoothing: float = 0.0,
    class_weights: np.ndarray | None = None,
    frozen: Sequence[str] = (),
    mixup: float = 0.0,
    accumulation_steps: int = 1,
    deterministic: bool = False,
    max_bad_steps: int = 0,
) -> TrainStep:
    """Returns the jitted step `(state, batch) -> (state, metrics)`; it reuses the state's memory.

    The metrics are `clip_sums` of the batch before the update, `learning_rate`, `grad_norm` (the
    global norm of the raw gradients) and those of `skip_bad_step`, which keeps a step that is not
    finite out of the state.

    Args:
        schedule: learning rate by step, for the metrics; the optimizer has its own.
        seed: seed of dropout and mixup.
        class_weights: weights of the loss by class, `[K]`; None for 1. The loss in the metrics is
            unweighted.
        frozen: parts of the network without a gradient, as for `make_optimizer`.

    The remaining options are keys of a recipe.
    """

    def loss_fn(
        trained: Tensors, fixed: Tensors, batch_stats: Tensors, batch: Batch
    ) -> tuple[jax.Array, Any]:
        logits, new_batch_stats = network.apply(
            {**fixed, **trained},
            batch_stats,
            shown_video(batch, mixup),
            train=True,
            dropout_keys=batch["dropout_key"],
        )
        losses = mixed_losses(logits, batch, None)
        sums = clip_sums(clip_ranks(logits, batch["label"]), batch["mask"], losses)
        if class_weights is not None:
            losses = mixed_losses(logits, batch, jnp.asarray(class_weights, jnp.float32))
        return losses.sum() / sums["count"], (new_batch_stats, sums)

    def mixed_losses(logits: jax.Array, batch: Batch, weights: jax.Array | None) -> jax.Array:
        def of(labels: jax.Array) -> jax.Array:
            losses = cross_entropy(logits, labels, label_smoothing)
            return losses if weights is None else weights[labels] * losses

        if not mixup:
            return of(batch["label"])
        share = batch["own_share"]
        return share * of(batch["label"]) + (1 - share) * of(batch["other_label"])

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        fixed = {name: p for name, p in state.params.items() if is_in(name, frozen)}
        trained = {name: p for name, p in state.params.items() if name not in fixed}

        def compute(part: Batch) -> Outcome:
            gradients, (batch_stats, sums) = jax.grad(loss_fn, has_aux=True)(
                trained, fixed, state.batch_stats, part
            )
            return Outcome(gradients, batch_stats, sums)

        batch = with_draws(batch, seed, state.step, mixup)
        gradients, batch_stats, sums = accumulate(compute, batch, accumulation_steps, mesh)
        gradients |= jax.tree.map(jnp.zeros_like, fixed)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = {
            **sums,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": global_norm(gradients),
        }
        params: Any = optax.apply_updates(state.params, updates)
        updated = TrainState(state.step + 1, params, batch_stats, opt_state, state.bad_steps)
        return skip_bad_step(state, updated, metrics, max_bad_steps)

    return jit_step(train_step, mesh, deterministic=deterministic, donate_argnums=(0,))


def shown_video(batch: Batch, mixup: float) -> jax.Array:
    """Returns the network's input, `[B, T, H, W, 3]`: one view of each clip, or two clips mixed."""
    video = normalize(batch["video"][:, 0])
    if not mixup:
        return video
    own = batch["own_share"][:, None, None, None, None]
    return own * video + (1 - own) * normalize(batch["other_video"][:, 0])


def with_draws(batch: Batch, seed: int, step: jax.Array, mixup: float) -> Batch:
    """Adds the random values of a step: dropout keys and, for mixup, the other clips and shares.

    Each clip is mixed with the one at the mirrored position of the batch, whose order is random.
    Both clips of a pair are mixed with each other, so a clip's own share can be drawn as the larger
    of the two: the label that accuracy counts is then the predominant one.
    """
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    clips = len(batch["label"])
    batch = {**batch, "dropout_key": jax.random.split(step_key, clips)}
    if not mixup:
        return batch
    # With a key that no clip uses.
    share = jax.random.beta(jax.random.fold_in(step_key, clips), mixup, mixup)
    return {
        **batch,
        "other_video": batch["video"][::-1],
        "other_label": batch["label"][::-1],
        "own_share": jnp.full(clips, jnp.maximum(share, 1 - share)),
    }


class Outcome(NamedTuple):
    gradients: Tensors  # of the mean loss
    batch_stats: Tensors  # running statistics after the batch
    sums: dict[str, jax.Array]  # `clip_sums`


def accumulate(compute: Callable[[Any], Outcome], batch: Any, parts: int, mesh: Mesh) -> Outcome:
    """Computes a batch in `parts`, one after the other, with the outcome of the whole batch.

    Gradients are means over clips, and batch norm computes statistics over groups of clips. Parts
    that hold whole groups therefore give the same as the whole batch, with the activations of only
    one part in memory. Running statistics start from the same values in each part, so their mean is
    what the whole batch would move them to.
    """
    if parts == 1:
        return compute(batch)
    split = jax.tree.map(lambda array: _split(array, parts, mesh), batch)
    first = jax.tree.map(lambda array: array[0], split)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(compute, first)
    )

    def add(total: Outcome, part: Any) -> tuple[Outcome, None]:
        return jax.tree.map(jnp.add, total, compute(part)), None

    total, _ = jax.lax.scan(add, zeros, split)
    gradients, batch_stats = (
        {name: array / parts for name, array in tensors.items()}
        for tensors in (total.gradients, total.batch_stats)
    )
    return Outcome(gradients, batch_stats, total.sums)


def _split(array: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """Reshapes `[B, ...]` to `[parts, B / parts, ...]`; every part has clips of every device.

    No clip moves to another device, and adjacent clips on a device stay adjacent.
    """
    by_device = array.reshape(mesh.size, parts, -1, *array.shape[1:])
    by_part = by_device.swapaxes(0, 1).reshape(parts, -1, *array.shape[1:])
    sharding = NamedSharding(mesh, PartitionSpec(None, AXIS))
    return jax.lax.with_sharding_constraint(by_part, sharding)


def make_eval_step(
    network: Network,
    *,
    mesh: Mesh,
    average_probabilities: bool = False,
    by_frames: bool = False,
    deterministic: bool = False,
) -> EvalStep:
    """Returns the jitted step `(params, batch_stats, batch) -> (sums, clips)`.

    `sums` are `clip_sums`, with `class_sums` as `classes`.

    `clips` holds the results for each clip of the global batch, in every process: `logits`
    `[B, K]`, averaged over views (with `average_probabilities`, their softmax is the average over
    the views' softmax), `rank` `[B]` as in `clip_ranks`, and `mask` `[B]`. With `by_frames`, for a
    network whose frames do not depend on later ones, also `right_after` `[B, T]`: whether the mean
    of the first t+1 frames' logits is right.
    """

    def average(logits: jax.Array) -> jax.Array:
        """Averages over views, `[B, V, K]` to `[B, K]`."""
        if average_probabilities:  # up to a constant, the logarithm of the average
            return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=1)
        return logits.mean(1)

    def eval_step(params: Tensors, batch_stats: Tensors, batch: Batch) -> EvalResult:
        video = batch["video"]  # [B, V, T, H, W, 3]
        views = video.reshape(-1, *video.shape[2:])  # [B*V, T, H, W, 3]
        frames = None
        if by_frames:
            module = network.module(params, batch_stats)
            frames = module.frame_logits(normalize(views))  # [B*V, T, K]
            logits = frames.mean(1)
        else:
            logits, _ = network.apply(params, batch_stats, normalize(views))
        logits = average(logits.reshape(*video.shape[:2], -1))
        losses = cross_entropy(logits, batch["label"])
        ranks = clip_ranks(logits, batch["label"])
        clips = {"logits": logits, "rank": ranks, "mask": batch["mask"]}
        if frames is not None:
            seen = jnp.arange(1, video.shape[2] + 1)
            means = frames.cumsum(1).swapaxes(0, 1) / seen[:, None, None]  # [T, B*V, K]
            means = means.reshape(len(seen), *video.shape[:2], -1)
            right = jax.vmap(lambda each: clip_ranks(average(each), batch["label"]) < 1)(means)
            clips["right_after"] = right.T
        classes = class_sums(logits, batch["label"], ranks, batch["mask"])
        return {**clip_sums(ranks, batch["mask"], losses), "classes": classes}, clips

    return jit_step(eval_step, mesh, deterministic=deterministic)


def evaluate(
    eval_step: EvalStep,
    params: Tensors,
    batch_stats: Tensors,
    batches: Iterable[dict[str, np.ndarray]],
    mesh: Mesh,
    on_batch: Callable[[int], None] = lambda done: None,
    on_clips: Callable[[dict[str, jax.Array]], None] = lambda clips: None,
) -> dict[str, float]:
    """Returns means over all clips: those of `Meter`, and `class_metrics`.

    Args:
        batches: from `eval_batches`, at least one.
        on_batch: called with the number of batches sent to the devices so far.
        on_clips: called with the `clips` of each step, in the order of the batches.
    """
    meter = Meter()
    classes = np.zeros((3, 1), np.int64)

    def finish(result: EvalResult) -> None:
        nonlocal classes
        sums, clips = jax.device_get(result[0]), result[1]
        meter.update(sums)
        classes = classes + sums["classes"]
        on_clips(clips)

    pending = None
    for done, batch in enumerate(batches, start=1):
        result = eval_step(params, batch_stats, put_batch(batch, mesh))
        if pending is not None:  # one step late, so that devices never wait for the host
            finish(pending)
        pending = result
        on_batch(done)
    if pending is not None:
        finish(pending)
    return {**meter.result(classes.shape[1]), **class_metrics(classes)}
