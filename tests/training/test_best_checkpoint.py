"""Which checkpoint is the best by which metric, for the run and for later readers."""

from __future__ import annotations

import os

import jax.numpy as jnp
import pytest

from tsm_jax.config import default
from tsm_jax.errors import UserError
from tsm_jax.training.checkpoint import Checkpoints
from tsm_jax.training.checkpoint_files import BEST_METRIC_FILE
from tsm_jax.training.state import TrainState


def validated(checkpoints, step, top1, mean_recall=None):
    """Saves a checkpoint with its validation; without mean recall, as version 0.1.0 did."""
    zero = jnp.zeros((), jnp.int32)
    tensors = {"a": jnp.ones(2)}
    state = TrainState(jnp.asarray(step, jnp.int32), tensors, tensors, tensors, zero)
    checkpoints.save(state, default(), {})
    metrics = {"loss": 1.0, "top1": top1, "count": 8}
    if mean_recall is not None:
        metrics["mean_recall"] = mean_recall
    checkpoints.add_validation(step, metrics)


@pytest.fixture
def opened(tmp_path):
    """Opens the run's checkpoints, which are closed after the test."""
    found = []

    def open_(*, read_only=False):
        found.append(Checkpoints(str(tmp_path), read_only=read_only))
        return found[-1]

    yield open_
    for checkpoints in found:
        checkpoints.close()


@pytest.mark.parametrize(("metric", "best"), [("top1", 1), ("mean_recall", 2)])
def test_the_metric_decides_for_the_run_and_for_readers(opened, metric, best):
    checkpoints = opened()
    checkpoints.choose_best_by(metric)
    validated(checkpoints, 1, 0.6875, 0.25)  # always predicts the largest class
    validated(checkpoints, 2, 0.6, 0.55)
    validated(checkpoints, 3, 0.6875, 0.55)  # equally good by either metric, but later
    for step in (4, 5):
        validated(checkpoints, step, 0.1, 0.1)
    assert checkpoints.best_step() == best
    checkpoints.wait()
    reader = opened(read_only=True)
    assert (reader.best_metric, reader.best_step()) == (metric, best)
    names = os.listdir(os.path.dirname(reader.path(best)))
    assert sorted(name for name in names if name.isdigit()) == [str(best), "4", "5"]


def test_another_metric_chooses_among_existing_checkpoints(opened):
    checkpoints = opened()
    checkpoints.choose_best_by("top1")
    validated(checkpoints, 1, 0.7, 0.3)
    validated(checkpoints, 2, 0.6, 0.5)
    checkpoints.choose_best_by("mean_recall")
    checkpoints.wait()
    assert opened(read_only=True).best_step() == 2


def test_validations_of_older_versions_count_until_one_has_the_metric(opened, caplog):
    checkpoints = opened()
    validated(checkpoints, 1, 0.9)
    validated(checkpoints, 2, 0.8)
    assert not caplog.records
    checkpoints.choose_best_by("mean_recall")
    (record,) = caplog.records
    assert "steps 1, 2 were validated without mean_recall" in record.getMessage()
    assert (checkpoints.best_metric, checkpoints.best_step()) == ("top1", 1)
    validated(checkpoints, 3, 0.1, 0.1)
    assert (checkpoints.best_metric, checkpoints.best_step()) == ("mean_recall", 3)


def test_the_best_of_a_run_of_an_older_version_is_chosen_by_top1(opened, tmp_path):
    checkpoints = opened()
    validated(checkpoints, 1, 0.9, 0.1)
    validated(checkpoints, 2, 0.8, 0.2)
    checkpoints.wait()
    assert not (tmp_path / "checkpoints" / BEST_METRIC_FILE).exists()
    assert opened(read_only=True).best_step() == 1


@pytest.mark.parametrize("content", ["", "[]", '{"best_metric": "loss"}'])
def test_a_damaged_metric_file_is_named(opened, tmp_path, content):
    opened()
    (tmp_path / "checkpoints" / BEST_METRIC_FILE).write_text(content)
    with pytest.raises(UserError, match=BEST_METRIC_FILE):
        opened(read_only=True)
