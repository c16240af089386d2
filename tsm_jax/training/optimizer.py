"""SGD with momentum in the order of the reference, and its learning-rate schedule.

The order is that of Paddle's `Momentum` and of PyTorch's SGD, and it matters: the clip sees raw
gradients, the decay is added after it and goes through the momentum, and the learning rate with
its per-parameter multiplier stays outside the velocity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tsm_jax.models.architecture import CLASSIFIER

# The classifier, and PP-TSMv2's attention over time.
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
    """Learning rate by step, after a linear warm-up that starts at `warmup_start * learning_rate`.

    A `step` schedule multiplies by `decay_factor` at each of `boundaries` (steps of the run);
    `cosine` goes to zero at `total_steps`. Both begin at the peak `learning_rate`, where the
    warm-up ends. `whole_cosine` has its peak at step 0 and the warm-up instead of its beginning, so
    that the run stays below it (PP-TSM).
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
    """Clip by global norm -> L2 -> momentum -> learning rate times multiplier.

    Args:
        momentum: of the velocity `v = momentum * v + g`, without dampening.
        nesterov: go on by `momentum * v + g` instead of `v`.
        decay: of `weights` (convolutions and classifier) or `fc` (the classifier's weight).
        clip_norm: largest global norm of the raw gradients, 0 for none.
        fc_weight_multiplier: of the learning rate, like `fc_bias_multiplier`.
        frozen: parts of the network that keep their values (`is_in`); they have no velocity.
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
    """Whether a tensor is one of `parts` of the module tree, or inside one.

    `backbone.blocks.1` has `backbone.blocks.1.project.conv.kernel` in it, and nothing of
    `backbone.blocks.10`.
    """
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _clip(largest: float) -> optax.GradientTransformation:
    """By the global norm, as PyTorch does: the small number shows in float64 after six steps."""

    def clip(gradients: Any, _: Any) -> Any:
        share = jnp.minimum(1, largest / (global_norm(gradients) + 1e-6))
        return jax.tree.map(lambda gradient: gradient * share, gradients)

    return optax.stateless(clip)


def _ending(suffix: str) -> Callable[[Mapping[str, Any]], dict[str, bool]]:
    """A mask of the parameters whose name ends like this."""
    return lambda params: {name: name.endswith(suffix) for name in params}


def global_norm(gradients: Mapping[str, jax.Array]) -> jax.Array:
    """Euclidean norm over all tensors, float32 scalar."""
    return jnp.asarray(optax.tree.norm(gradients))
