"""The checkpoints of a run: the newest two, and the one with the best validation.

A checkpoint holds the train state, the recipe and what the log line under way has added up, and
later the metrics of its validation. The position in the data and the random state need
no entry of their own: order, augmentation and dropout are functions of the seed and the step.
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
# Orbax warns whoever asks to read only that it will only read.
logging.getLogger("absl").addFilter(
    lambda record: not str(record.msg).startswith("Given directory is read only")
)


class Checkpoints:
    """Saves in the background; a save counts only once it is complete.

    The checkpoints are folders in `checkpoints/` of a workdir, named by their steps. With
    `read_only`, as for evaluation and prediction, nothing is created or moved.
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
            # Runs when all is written and before the folder gets its final name.
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
        """Starts saving a copy; a UserError if this save or the one before cannot be written."""
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
        """Puts a validation into its checkpoint; the best one needs a finite loss."""
        self.wait()
        if not math.isfinite(metrics["loss"]):
            metrics = {**metrics, "loss": None}
        self._validations[step] = metrics
        if jax.process_index() == 0:
            write_json(os.path.join(self.path(step), files.VALIDATION_FILE), metrics)

    def path(self, step: int) -> str:
        """Folder of a step."""
        return os.path.join(self._directory, str(step))

    def latest_step(self) -> int | None:
        """The newest complete checkpoint."""
        return self._manager.latest_step()

    def choose_best_by(self, metric: str) -> None:
        """Sets what decides which checkpoint is the best, here and for whoever reads them later.

        A warning names the checkpoints that cannot be chosen by it, because an older version
        validated them without it.
        """
        self._best_by = metric
        if jax.process_index() > 0:
            return
        path = os.path.join(self._directory, files.BEST_METRIC_FILE)
        write_json(path, {"best_metric": metric})
        steps = [s for s in self._manager.all_steps() if self.metrics(s)]
        if lacking := [str(s) for s in steps if metric not in self.metrics(s)]:
            _log.warning(
                "%s: an older version of tsm_jax has validated the checkpoints of steps %s, without"
                " %s: they cannot be chosen as the best by it",
                self._directory,
                ", ".join(lacking),
                metric,
            )

    @property
    def best_metric(self) -> str:
        """What decides which checkpoint is the best: top-1 as long as no validation has another."""
        steps = self._manager.all_steps()
        return self._best_by if any(self._best_by in self.metrics(s) for s in steps) else "top1"

    def best_step(self) -> int | None:
        """The checkpoint of the best validation; of equals the first."""
        metric = self.best_metric
        steps = [step for step in self._manager.all_steps() if metric in self.metrics(step)]
        return max(steps, key=lambda step: (self.metrics(step)[metric], -step), default=None)

    def validated(self, step: int) -> bool:
        return step in self._validations

    def metrics(self, step: int) -> dict[str, float]:
        """Validation metrics of a step; empty if there are none or the loss is not finite."""
        metrics = self._validations.get(step, {})
        return {} if metrics.get("loss") is None else metrics

    def recipe(self, step: int) -> ConfigDict:
        """The recipe that a checkpoint was trained with."""
        self._check(step)
        # Orbax's own reader takes what is nested deeply, or is not a dictionary, without a word.
        path = os.path.join(self.path(step), "recipe", "metadata")
        values = read_json(path, "the recipe")
        try:
            return config_lib.from_dict(values)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def provenance(self, step: int, config: ConfigDict) -> dict[str, Any]:
        """Where the weights of a step come from, as JSON: the run, its recipe, its validation."""
        name = os.path.basename(os.path.dirname(os.path.abspath(self._directory)))
        return {
            "trained_in": name,
            "step": step,
            "metrics": self.metrics(step),
            "best_metric": self.best_metric,
            "recipe": {**config_lib.to_dict(config), "workdir": name},
        }

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The train state of a step, of shapes and devices as in `abstract_state`; its progress."""
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
        """Parameters and running statistics alone, replicated over a mesh."""
        shapes = {"params": network.param_shapes, "batch_stats": network.batch_stat_shapes}
        target = jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, "float32", sharding=replicated(mesh)),
            shapes,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        restored = self._restore(step, model=ocp.args.StandardRestore(target))
        return restored["model"]["params"], restored["model"]["batch_stats"]

    def wait(self) -> None:
        """Returns when everything is on disk; a UserError if it cannot be written."""
        with self._write_errors_named():
            self._manager.wait_until_finished()
            if not self._read_only and jax.process_index() == 0:
                files.remove_leftovers(self._directory)

    def close(self) -> None:
        """Waits and ends the background threads."""
        self.wait()
        with self._write_errors_named():
            self._manager.close()

    def _restore(self, step: int, **items: Any) -> Any:
        self._check(step)
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _check(self, step: int) -> None:
        # A run that continues has checked its checkpoints when it began.
        if self._read_only and (damage := files.find_damage(self.path(step))):
            raise UserError(
                f"{self.path(step)} is unreadable ({damage}): run the training again, which goes on"
                " from the checkpoint before"
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
                f"cannot write a checkpoint in {self._directory}: {reason}. Make room there and run"
                " the same command again: it continues from the last complete one"
            ) from error


class _Best:
    """Keeps the checkpoint of the best validation."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        best = self._checkpoints.best_step()
        return [checkpoint.step == best for checkpoint in checkpoints]


def _system_error(error: BaseException) -> str:
    """Why the operating system did not write, as on a full disk; empty for any other error."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    # Tensorstore raises a ValueError with the number in its text.
    number = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(number[1])) if number else ""


def _optimizer_item(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "bad_steps": state.bad_steps}


def check_same_run(saved: ConfigDict, config: ConfigDict, workdir: str) -> None:
    """Raises a UserError if continuing `saved` with `config` would mix two different runs."""
    before, now = dict(config_lib.flatten(saved)), dict(config_lib.flatten(config))
    different = [
        f"{key} {before[key]!r} -> {now[key]!r}"
        for key in now
        if before[key] != now[key] and not config_lib.KEYS[key].changeable
    ]
    if different:
        raise UserError(
            f"{workdir} holds a run of another recipe ({'; '.join(different)}): choose another"
            " --config.workdir, or delete that one"
        )
