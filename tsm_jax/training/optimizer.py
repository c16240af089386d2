"""SGD with momentum in the reference's order of operations, and its learning-rate schedule.

Paddle's `Momentum` and PyTorch's SGD use the same order, and it matters: raw gradients are clipped,
weight decay is added afterwards and passes through the momentum, and the learning rate with its
per-parameter multiplier stays outside the velocity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tsm_jax.models.architecture import CLASSIFIER

# Suffixes of the classifier's parameters and of those of PP-TSMv2's temporal attention.
_FC_KERNEL, _FC_BIAS = ".fc.kernel", ".fc.bias"


def make_schedule(
    learning_rate: float,
    *,
    schedule: str,
    boundaries: tuple[int, ...],
    decay_factor: float,
    warmup_steps: int,
    warmup_start: float = 0.0,
    total_steps: int,
) -> optax.Schedule:
    """Returns the learning rate by step, with a linear warm-up from `warmup_start * learning_rate`.

    `step` multiplies the rate by `decay_factor` at each of `boundaries` (steps of the run);
    `cosine` decreases it to zero at `total_steps`. Both start from the peak `learning_rate`, where
    the warm-up ends. `whole_cosine` has its peak at step 0, and the warm-up replaces its beginning,
    so that the run stays below the peak (PP-TSM).
    """
    peak = learning_rate
    if schedule == "whole_cosine":
        whole = optax.cosine_decay_schedule(learning_rate, max(total_steps, 1))
        peak *= (1 + math.cos(math.pi * warmup_steps / total_steps)) / 2

        def after(step):
            return whole(step + warmup_steps)

    elif schedule == "cosine":
        decay_steps = max(total_steps - warmup_steps, 1)
        after = optax.cosine_decay_schedule(learning_rate, decay_steps)
    else:
        scales = {step - warmup_steps: decay_factor for step in boundaries}
        after = optax.piecewise_constant_schedule(learning_rate, scales)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(warmup_start * learning_rate, peak, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float,
    nesterov: bool = False,
    weight_decay: float,
    decay: str,
    clip_norm: float,
    fc_weight_multiplier: float,
    fc_bias_multiplier: float,
    frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
    """Builds: clip by global norm -> L2 -> momentum -> learning rate times multiplier.

    Args:
        learning_rate: a number or a schedule by step.
        momentum: coefficient of the velocity `v = momentum * v + g`, without dampening.
        nesterov: update by `momentum * v + g` instead of `v`.
        weight_decay: coefficient of the L2 term.
        decay: what it applies to: `weights` (convolutions and classifier) or `fc` (the classifier's
            weight).
        clip_norm: maximum global norm of the raw gradients, 0 for no clipping.
        fc_weight_multiplier: learning-rate multiplier of the weights of fully connected layers.
        fc_bias_multiplier: learning-rate multiplier of their biases.
        frozen: parts of the network that keep their values (see `is_in`) and have no velocity.
    """
    rule = optax.chain(
        _clip(clip_norm) if clip_norm else optax.identity(),
        optax.add_decayed_weights(
            weight_decay, mask=_ending(".kernel" if decay == "weights" else CLASSIFIER)
        ),
        optax.trace(decay=momentum, nesterov=nesterov),
        optax.masked(optax.scale(fc_weight_multiplier), _ending(_FC_KERNEL)),
        optax.masked(optax.scale(fc_bias_multiplier), _ending(_FC_BIAS)),
        optax.scale_by_learning_rate(learning_rate),
    )
    if not frozen:
        return rule
    return optax.partition(
        {True: optax.set_to_zero(), False: rule},
        lambda params: {name: is_in(name, frozen) for name in params},
    )


def is_in(name: str, parts: Sequence[str]) -> bool:
    """Returns whether a tensor is one of `parts` of the module tree, or is inside one.

    `backbone.blocks.1` contains `backbone.blocks.1.project.conv.kernel`, but nothing of
    `backbone.blocks.10`.
    """
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _clip(largest: float) -> optax.GradientTransformation:
    """Clips by the global norm as PyTorch does: its 1e-6 is visible in float64 after six steps."""

    def clip(gradients: Any, _: Any) -> Any:
        share = jnp.minimum(1, largest / (global_norm(gradients) + 1e-6))
        return jax.tree.map(lambda gradient: gradient * share, gradients)

    return optax.stateless(clip)


def _ending(suffix: str) -> Callable[[Mapping[str, Any]], dict[str, bool]]:
    """Returns a function from parameters to a mask of those whose name ends in `suffix`."""
    return lambda params: {name: name.endswith(suffix) for name in params}


def global_norm(gradients: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the Euclidean norm over all tensors, a float32 scalar."""
    return jnp.asarray(optax.tree.norm(gradients))
