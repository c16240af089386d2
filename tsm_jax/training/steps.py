"""The two functions that run on the devices: a training step and an evaluation step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from tsm_jax.models.network import Network, Tensors
from tsm_jax.models.normalize import normalize
from tsm_jax.training.accumulation import Outcome, accumulate
from tsm_jax.training.bad_steps import skip_bad_step
from tsm_jax.training.compiling import compiler_options
from tsm_jax.training.mesh import replicated, split_by_clips
from tsm_jax.training.metrics import class_sums, clip_ranks, clip_sums, cross_entropy
from tsm_jax.training.optimizer import global_norm
from tsm_jax.training.state import TrainState

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
    accumulation_steps: int = 1,
    deterministic: bool = False,
    max_bad_steps: int = 0,
) -> TrainStep:
    """The jitted step `(state, batch) -> (state, metrics)`; the old state's memory is reused.

    Args:
        network: in training.
        optimizer: of its parameters.
        schedule: learning rate by step, for the metrics.
        mesh: the devices.
        seed: of dropout.
        label_smoothing: share of the target that is spread over all classes.
        accumulation_steps: parts that a batch is computed in, see `accumulation.py`.
        deterministic: see `compiling.py`.
        max_bad_steps: see `bad_steps.py`.

    The metrics are `clip_sums` of the batch before the update, with `learning_rate`, `grad_norm`
    (the global norm of the raw gradients) and what `skip_bad_step` adds, which keeps a step that is
    not finite out of the state.
    """

    def loss_fn(params: Tensors, batch_stats: Tensors, batch: Batch) -> tuple[jax.Array, Any]:
        logits, new_batch_stats = network.apply(
            params,
            batch_stats,
            normalize(batch["video"][:, 0]),  # [B, T, H, W, 3]: one view
            train=True,
            dropout_keys=batch["dropout_key"],
        )
        losses = cross_entropy(logits, batch["label"], label_smoothing)
        sums = clip_sums(clip_ranks(logits, batch["label"]), batch["mask"], losses)
        return sums["loss"] / sums["count"], (new_batch_stats, sums)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        def compute(part: Batch) -> Outcome:
            gradients, (batch_stats, sums) = jax.grad(loss_fn, has_aux=True)(
                state.params, state.batch_stats, part
            )
            return Outcome(gradients, batch_stats, sums)

        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        dropout_keys = jax.random.split(step_key, batch["label"].shape[0])
        gradients, batch_stats, sums = accumulate(
            compute, {**batch, "dropout_key": dropout_keys}, accumulation_steps, mesh
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = {
            **sums,
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "grad_norm": global_norm(gradients),
        }
        params: Any = optax.apply_updates(state.params, updates)
        updated = TrainState(state.step + 1, params, batch_stats, opt_state, state.bad_steps)
        return skip_bad_step(state, updated, metrics, max_bad_steps)

    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(replicated(mesh), split_by_clips(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(mesh, deterministic=deterministic),
    )


def make_eval_step(
    network: Network,
    *,
    mesh: Mesh,
    average_probabilities: bool = False,
    deterministic: bool = False,
) -> EvalStep:
    """The jitted step `(params, batch_stats, batch) -> (sums, clips)`.

    `sums` are `clip_sums`, with `class_sums` as `classes`.

    `clips` has what each clip of the global batch got, on every process: `logits` `[B, K]`,
    averaged over its views (if `average_probabilities`, so that their softmax is the average of
    the views'), `rank` of `clip_ranks` `[B]`, and `mask` `[B]`.
    """

    def eval_step(params: Tensors, batch_stats: Tensors, batch: Batch) -> EvalResult:
        video = batch["video"]  # [B, V, T, H, W, 3]
        clips = video.reshape(-1, *video.shape[2:])  # [B*V, T, H, W, 3]
        logits, _ = network.apply(params, batch_stats, normalize(clips))
        logits = logits.reshape(*video.shape[:2], -1)  # [B, V, K]
        if average_probabilities:  # its logarithm, whose softmax it is
            logits = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=1)
        else:
            logits = logits.mean(1)
        losses = cross_entropy(logits, batch["label"])
        ranks = clip_ranks(logits, batch["label"])
        clips = {"logits": logits, "rank": ranks, "mask": batch["mask"]}
        classes = class_sums(logits, batch["label"], ranks, batch["mask"])
        return {**clip_sums(ranks, batch["mask"], losses), "classes": classes}, clips

    return jax.jit(
        eval_step,
        in_shardings=(replicated(mesh), replicated(mesh), split_by_clips(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(mesh, deterministic=deterministic),
    )
