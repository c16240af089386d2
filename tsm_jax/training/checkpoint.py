"""Checkpoints of a run: the newest two and the one with the best validation.

A checkpoint contains the train state, the recipe and the running sums of the current log line; the
metrics of its validation are added later. The position in the data and the random state are not
stored: order, augmentation and dropout are functions of the seed and the step.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from ml_collections import ConfigDict
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, LatestN
from orbax.checkpoint.options import AsyncOptions

from tsm_jax import config as config_lib
from tsm_jax.errors import UserError
from tsm_jax.files import read_json, write_json
from tsm_jax.models.network import Network, Tensors
from tsm_jax.training import checkpoint_files as files
from tsm_jax.training.mesh import replicated
from tsm_jax.training.processes import wait_for_all
from tsm_jax.training.state import TrainState

_log = logging.getLogger(__name__)
_ITEMS = ("model", "optimizer", "recipe", "progress")
# Orbax warns about read-only access even if read-only access was requested.
logging.getLogger("absl").addFilter(
    lambda record: not str(record.msg).startswith("Given directory is read only")
)


class Checkpoints:
    """Saves and restores the checkpoints of a run.

    Saving happens in the background; a checkpoint counts only once it is complete. Checkpoints are
    folders in `checkpoints/` of the workdir, named after their steps. With `read_only`, as used by
    evaluation and prediction, nothing is created or moved.
    """

    def __init__(self, workdir: str, *, read_only: bool = False):
        self._directory = os.path.join(workdir, config_lib.CHECKPOINTS)
        self._read_only = read_only
        if not read_only:
            if jax.process_index() == 0:
                files.set_unreadable_aside(workdir)
            wait_for_all("checked checkpoints")
        self._validations = files.read_validations(self._directory)
        self._best_by = files.read_best_metric(self._directory)
        self._saving = 0
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(2), _Best(self)]),
            save_interval_steps=0 if read_only else 1,
            create=not read_only,
            read_only=read_only,
            todelete_subdir=None if read_only else files.DELETED,
            # Runs after everything has been written, before the folder gets its final name.
            async_options=AsyncOptions(
                post_finalization_callback=lambda: files.write_checksums(
                    self._directory, self._saving
                )
            ),
        )
        with self._write_errors_named():
            self._manager = ocp.CheckpointManager(
                os.path.abspath(self._directory), options=options, item_names=_ITEMS
            )

    def save(self, state: TrainState, config: ConfigDict, progress: dict[str, Any]) -> None:
        """Starts saving a copy of the state, unless this step has already been saved.

        Raises:
            UserError: this save or the previous one cannot be written.
        """
        step = int(jax.device_get(state.step))
        if step in self._manager.all_steps():
            return
        self.wait()
        self._saving = step
        with self._write_errors_named():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(
                        {"params": state.params, "batch_stats": state.batch_stats}
                    ),
                    optimizer=ocp.args.StandardSave(_optimizer_item(state)),
                    recipe=ocp.args.JsonSave(config_lib.to_dict(config)),
                    progress=ocp.args.JsonSave(progress),
                ),
            )

    def add_validation(self, step: int, metrics: dict[str, Any]) -> None:
        """Stores validation metrics in their checkpoint.

        A loss that is not finite is stored as null, and the checkpoint cannot become the best.
        """
        self.wait()
        if not math.isfinite(metrics["loss"]):
            metrics = {**metrics, "loss": None}
        self._validations[step] = metrics
        if jax.process_index() == 0:
            write_json(os.path.join(self.path(step), files.VALIDATION_FILE), metrics)

    def path(self, step: int) -> str:
        """Returns the folder of a step's checkpoint."""
        return os.path.join(self._directory, str(step))

    def latest_step(self) -> int | None:
        """Returns the step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def choose_best_by(self, metric: str) -> None:
        """Sets the metric that decides which checkpoint is the best, also for later readers.

        Warns about checkpoints that an older version validated without this metric: they cannot be
        chosen as the best.
        """
        self._best_by = metric
        if jax.process_index() > 0:
            return
        path = os.path.join(self._directory, files.BEST_METRIC_FILE)
        write_json(path, {"best_metric": metric})
        steps = [s for s in self._manager.all_steps() if self.metrics(s)]
        if lacking := [str(s) for s in steps if metric not in self.metrics(s)]:
            _log.warning(
                "%s: the checkpoints of steps %s were validated without %s, by an older version of"
                " tsm_jax, and cannot be chosen as the best by this metric",
                self._directory,
                ", ".join(lacking),
                metric,
            )

    @property
    def best_metric(self) -> str:
        """Metric that decides which checkpoint is the best.

        This is top-1 as long as no validation contains the chosen metric.
        """
        steps = self._manager.all_steps()
        return self._best_by if any(self._best_by in self.metrics(s) for s in steps) else "top1"

    def best_step(self) -> int | None:
        """Returns the step of the best validation (the first on a tie), None without any."""
        metric = self.best_metric
        steps = [step for step in self._manager.all_steps() if metric in self.metrics(step)]
        return max(steps, key=lambda step: (self.metrics(step)[metric], -step), default=None)

    def validated(self, step: int) -> bool:
        return step in self._validations

    def metrics(self, step: int) -> dict[str, float]:
        """Returns a step's validation metrics; empty without any or if the loss is not finite."""
        metrics = self._validations.get(step, {})
        return {} if metrics.get("loss") is None else metrics

    def recipe(self, step: int) -> ConfigDict:
        """Returns the recipe that a checkpoint was trained with."""
        self._check(step)
        # Orbax's own reader silently accepts deeply nested values and values other than a dict.
        path = os.path.join(self.path(step), "recipe", "metadata")
        values = read_json(path, "the recipe")
        try:
            return config_lib.from_dict(values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def provenance(self, step: int, config: ConfigDict) -> dict[str, Any]:
        """Describes the origin of a step's weights, for JSON: run, recipe and validation."""
        name = os.path.basename(os.path.dirname(os.path.abspath(self._directory)))
        return {
            "trained_in": name,
            "step": step,
            "metrics": self.metrics(step),
            "best_metric": self.best_metric,
            "recipe": {**config_lib.to_dict(config), "workdir": name},
        }

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restores the train state and the progress of a step.

        Args:
            like: shapes, dtypes and shardings, from `abstract_state`.
        """
        restored = self._restore(
            step,
            model=ocp.args.StandardRestore(
                {"params": like.params, "batch_stats": like.batch_stats}
            ),
            optimizer=ocp.args.StandardRestore(_optimizer_item(like)),
            progress=ocp.args.JsonRestore(),
        )
        return TrainState(**restored["model"], **restored["optimizer"]), restored["progress"]

    def restore_model(self, step: int, network: Network, mesh: Mesh) -> tuple[Tensors, Tensors]:
        """Restores only the parameters and running statistics, replicated over a mesh."""
        shapes = {"params": network.param_shapes, "batch_stats": network.batch_stat_shapes}
        target = jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, "float32", sharding=replicated(mesh)),
            shapes,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        restored = self._restore(step, model=ocp.args.StandardRestore(target))
        return restored["model"]["params"], restored["model"]["batch_stats"]

    def wait(self) -> None:
        """Waits until everything is on disk.

        Raises:
            UserError: a checkpoint cannot be written.
        """
        with self._write_errors_named():
            self._manager.wait_until_finished()
            if not self._read_only and jax.process_index() == 0:
                files.remove_leftovers(self._directory)

    def close(self) -> None:
        """Waits for pending saves and stops the background threads."""
        self.wait()
        with self._write_errors_named():
            self._manager.close()

    def _restore(self, step: int, **items: Any) -> Any:
        self._check(step)
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check(self, step: int) -> None:
        # A continued run has already checked its checkpoints at the start.
        if self._read_only and (damage := files.find_damage(self.path(step))):
            raise UserError(
                f"{self.path(step)} is unreadable ({damage}): run the training again, which"
                " continues from the previous checkpoint"
            )

    @contextmanager
    def _write_errors_named(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = _system_error(error)
            if not reason or self._read_only:
                raise
            if jax.process_index() == 0:
                files.remove_leftovers(self._directory)
            raise UserError(
                f"cannot write a checkpoint to {self._directory}: {reason}; free some space there"
                " and run the same command again to continue from the last complete checkpoint"
            ) from error


class _Best:
    """Preservation policy that keeps the checkpoint with the best validation."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = self._checkpoints.best_step()
        return [checkpoint.step == best for checkpoint in checkpoints]


def _system_error(error: BaseException) -> str:
    """Returns the system's reason for a failed write, such as a full disk; else an empty string."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # Tensorstore raises a ValueError with the error number in its message.
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else ""


def _optimizer_item(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "bad_steps": state.bad_steps}


def check_same_run(saved: ConfigDict, config: ConfigDict, workdir: str) -> None:
    """Checks that continuing the run `saved` with `config` would not mix two different runs.

    Raises:
        UserError: the recipes differ in a key that may not change within a run.
    """
    before, now = dict(config_lib.flatten(saved)), dict(config_lib.flatten(config))
    different = [
        f"{key} {before[key]!r} -> {now[key]!r}"
        for key in now
        if before[key] != now[key] and not config_lib.KEYS[key].changeable
    ]
    if different:
        raise UserError(
            f"{workdir} contains a run of a different recipe ({'; '.join(different)}): choose"
            " another --config.workdir or delete this one"
        )
