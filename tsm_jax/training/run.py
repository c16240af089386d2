"""What the training loop works with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jax.sharding import Mesh
from ml_collections import ConfigDict

from tsm_jax.config import Plan
from tsm_jax.data.pipeline import TrainOrder
from tsm_jax.training.checkpoint import Checkpoints
from tsm_jax.training.preemption import Preemption
from tsm_jax.training.run_log import RunLog
from tsm_jax.training.state import TrainState
from tsm_jax.training.steps import TrainStep

# Means over the validation clips for a state; calls the second argument after every batch.
Validate = Callable[[TrainState, Callable[[], None]], dict[str, float]]


@dataclass(frozen=True)
class Run:
    """A run, ready to start.

    Attributes:
        config: the recipe.
        plan: the recipe in steps.
        mesh: the devices.
        order: which clip stands where, to notice replaced ones.
        clip_name: path of a training clip by its number.
        class_names: K names.
        first_step: where this process starts.
        train_step: one optimizer step.
        validate: means over the validation clips.
        checkpoints: of the run.
        log: of the run.
        preemption: notes when a scheduler wants the machine back.
    """

    config: ConfigDict
    plan: Plan
    mesh: Mesh
    order: TrainOrder
    clip_name: Callable[[int], str]
    class_names: Sequence[str]
    first_step: int
    train_step: TrainStep
    validate: Validate
    checkpoints: Checkpoints
    log: RunLog
    preemption: Preemption
