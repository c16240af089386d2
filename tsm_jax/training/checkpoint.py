"""The checkpoints of a run: the newest two, and the one with the best validation accuracy.

A checkpoint holds the train state, the recipe and the validation metrics. The position in the data
needs no entry of its own: order and augmentation are functions of the seed and the step.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from tsm_jax import config as config_lib
from tsm_jax.errors import UserError
from tsm_jax.models.network import Network, Tensors
from tsm_jax.training.mesh import replicated
from tsm_jax.training.state import TrainState

_ITEMS = ("model", "optimizer", "recipe")


class Checkpoints:
    """Saves in the background; a save counts only once it is complete.

    Args:
        workdir: of the run; checkpoints lie in its `checkpoints/`, one folder a step.
        read_only: for evaluation and prediction; nothing is created.
    """

    def __init__(self, workdir: str, *, read_only: bool = False):
        self._directory = os.path.join(workdir, config_lib.CHECKPOINTS)
        keep = AnyPreservationPolicy(
            [LatestN(2), BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False)]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=_rank,
            save_interval_steps=0 if read_only else 1,
            create=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(
            os.path.abspath(self._directory), options=options, item_names=_ITEMS
        )

    def save(
        self, state: TrainState, config: ConfigDict, metrics: dict[str, float] | None = None
    ) -> None:
        """Starts saving; the arrays are copied before this returns.

        Args:
            state: of the run.
            config: its recipe.
            metrics: of the validation at this step, if there was one.
        """
        step = int(jax.device_get(state.step))
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(
                    {"params": state.params, "batch_stats": state.batch_stats}
                ),
                optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
                recipe=ocp.args.JsonSave(config.to_dict()),
            ),
            metrics=None if metrics is None else {**metrics, "step": step},
        )

    def path(self, step: int) -> str:
        """Folder of a step."""
        return os.path.join(self._directory, str(step))

    def latest_step(self) -> int | None:
        """The newest complete checkpoint."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The checkpoint of the best validation top-1; of equals the first."""
        self.wait()  # the metrics of a save that is under way cannot be read yet
        with_metrics = any(self._manager.metrics(step) for step in self._manager.all_steps())
        return self._manager.best_step() if with_metrics else None

    def metrics(self, step: int) -> dict[str, float]:
        """Validation metrics of a step; empty if there was no validation."""
        return self._manager.metrics(step) or {}

    def recipe(self, step: int) -> ConfigDict:
        """The recipe that a checkpoint was trained with."""
        restored = self._manager.restore(
            step, args=ocp.args.Composite(recipe=ocp.args.JsonRestore())
        )
        return config_lib.from_dict(restored["recipe"])

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The train state of a step, with the shapes and devices of `like`."""
        abstract = jax.tree.map(_abstract, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardRestore(
                    {"params": abstract.params, "batch_stats": abstract.batch_stats}
                ),
                optimizer=ocp.args.StandardRestore(
                    {"step": abstract.step, "opt_state": abstract.opt_state}
                ),
            ),
        )
        model, optimizer = restored["model"], restored["optimizer"]
        return TrainState(
            optimizer["step"], model["params"], model["batch_stats"], optimizer["opt_state"]
        )

    def restore_model(self, step: int, network: Network, mesh: Mesh) -> tuple[Tensors, Tensors]:
        """Parameters and running statistics alone, replicated over a mesh."""
        sharding = replicated(mesh)

        def abstract(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
            return {
                name: jax.ShapeDtypeStruct(shape, "float32", sharding=sharding)
                for name, shape in shapes.items()
            }

        target = {
            "params": abstract(network.param_shapes),
            "batch_stats": abstract(network.batch_stat_shapes),
        }
        restored = self._manager.restore(
            step, args=ocp.args.Composite(model=ocp.args.StandardRestore(target))
        )
        return restored["model"]["params"], restored["model"]["batch_stats"]

    def wait(self) -> None:
        """Returns when everything is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and ends the background threads."""
        self._manager.close()


def _rank(metrics: dict[str, float]) -> Any:
    """Orders validations: by top-1, of equals the earlier one."""
    return metrics["top1"], -metrics["step"]


def _abstract(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


def check_same_run(saved: ConfigDict, config: ConfigDict, workdir: str) -> None:
    """Raises a UserError if continuing `saved` with `config` would mix two different runs."""
    before, now = dict(config_lib.flatten(saved)), dict(config_lib.flatten(config))
    different = [
        f"{key} {before[key]!r} -> {now[key]!r}"
        for key in now
        if before[key] != now[key] and key not in config_lib.CHANGEABLE_ON_RESUME
    ]
    if different:
        raise UserError(
            f"{workdir} holds a run of another recipe ({'; '.join(different)}): choose another"
            " --config.workdir, or delete that one"
        )
