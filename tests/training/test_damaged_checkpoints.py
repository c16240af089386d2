"""Which folders count as intact checkpoints; none of them makes a reader hang or crash."""

from __future__ import annotations

import json
import os

import pytest

from tsm_jax.training import checkpoint_files as files
from tsm_jax.training.log import RunLog


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint folder as a save leaves it, at step 3."""
    folder = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "array").write_bytes(b"weights")
    (folder / "_CHECKPOINT_METADATA").write_text("{}")
    files.write_checksums(str(folder.parent), 3)
    return folder.rename(folder.with_name("3"))


def test_a_finished_save_is_intact_even_with_an_extra_file(checkpoint):
    assert files.find_damage(str(checkpoint)) == ""
    (checkpoint / ".DS_Store").write_text("x")
    assert files.find_damage(str(checkpoint)) == ""


@pytest.mark.parametrize(
    "checksums",
    [
        "{",
        "{}",
        "[1]",
        "[" * 100_000,
        '{"model/array": 7}',
        '{"/dev/zero": [1, 2]}',
        '{"../../../../../../etc/passwd": [1, 2]}',
    ],
)
def test_damaged_checksums(checkpoint, checksums):
    (checkpoint / files.CHECKSUMS_FILE).write_text(checksums)
    assert files.find_damage(str(checkpoint))


def test_a_pipe_or_a_device_instead_of_a_file(checkpoint):
    array = checkpoint / "model" / "array"
    array.unlink()
    os.mkfifo(array)
    assert files.find_damage(str(checkpoint)) == "model/array is missing"
    array.unlink()
    array.symlink_to("/dev/zero")
    assert files.find_damage(str(checkpoint)) == "model/array is missing"
    (checkpoint / files.CHECKSUMS_FILE).unlink()
    os.mkfifo(checkpoint / files.CHECKSUMS_FILE)
    assert files.find_damage(str(checkpoint))


@pytest.mark.parametrize(
    "validation",
    [
        "{",
        "[1]",
        "[" * 100_000,
        '{"loss": 1}',
        '{"loss": 1, "top1": "x", "count": 1}',
        '{"loss": 1, "top1": NaN, "count": 1}',
    ],
)
def test_a_damaged_validation_is_treated_as_missing(checkpoint, validation):
    (checkpoint / files.VALIDATION_FILE).write_text(validation)
    assert files.read_validations(str(checkpoint.parent)) == {}


def test_a_validation_without_a_finite_loss_is_valid(checkpoint):
    metrics = {"loss": None, "top1": 0.0, "top5": 0.0, "count": 7}
    (checkpoint / files.VALIDATION_FILE).write_text(json.dumps(metrics))
    assert files.read_validations(str(checkpoint.parent)) == {3: metrics}


def test_a_log_with_foreign_lines(tmp_path):
    good = json.dumps({"kind": "train", "step": 1})
    (tmp_path / "metrics.jsonl").write_text("\n".join([good, "[" * 100_000, "{", "7", "\x00"]))
    RunLog(str(tmp_path), first_step=2).__exit__()
    assert (tmp_path / "metrics.jsonl").read_text() == good + "\n"


def test_names_cannot_send_escape_sequences_to_the_terminal(tmp_path, capsys):
    log = RunLog(str(tmp_path), first_step=0)
    log.say("on the clip \x1b[2Ja.mp4")
    log.__exit__()
    assert capsys.readouterr().out == "on the clip \\x1b[2Ja.mp4\n"
