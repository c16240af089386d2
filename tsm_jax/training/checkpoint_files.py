"""Whether a checkpoint's folder is whole, by a checksum per file, and what happens if it is not.

A killed process, a full disk or a copy that was cut off leave folders that look like checkpoints.
Reading such a folder may crash or hang, so every byte is checked before anything else reads it.
"""

from __future__ import annotations

import logging
import os
import shutil
import zlib
from typing import Any

from tsm_jax import config as config_lib
from tsm_jax.errors import UserError
from tsm_jax.files import read_json, reason, write_json

CHECKSUMS_FILE = "checksums.json"
VALIDATION_FILE = "validation.json"
BEST_METRIC_FILE = "best_metric.json"  # what decides which checkpoint is the best
UNREADABLE = "unreadable"
# Old checkpoints are moved here before they are deleted: half of one must not look like damage.
DELETED = ".deleted"

# Orbax adds the time to this file when the checksums are taken; it must at least be JSON.
_TIMESTAMP_FILE = "_CHECKPOINT_METADATA"
_UNFINISHED = ".orbax-checkpoint-tmp"
_CHUNK = 1 << 20
_log = logging.getLogger(__name__)


def write_checksums(directory: str, step: int) -> None:
    """Writes the checksums of the save of a step, just before it gets its final name."""
    names = [name for name in os.listdir(directory) if name.startswith(f"{step}{_UNFINISHED}")]
    if len(names) != 1:
        raise RuntimeError(f"{directory}: one unfinished save of step {step} expected, not {names}")
    folder = os.path.join(directory, names[0])
    write_json(
        os.path.join(folder, CHECKSUMS_FILE), {name: _sums(folder, name) for name in _files(folder)}
    )


def find_damage(folder: str) -> str:
    """Why a checkpoint cannot be trusted, in words; empty if it is whole."""
    name = CHECKSUMS_FILE
    try:
        expected = dict(read_json(os.path.join(folder, name), "the checksums"))
        if not expected:
            return f"{name} names no files"
        there = set(_files(folder))
        for name, (size, crc) in expected.items():
            if name not in there:
                return f"{name} is not there"
            found_size, found_crc = _sums(folder, name)
            if found_size != size:
                return f"{name} has {found_size} of {size} bytes"
            if found_crc != crc:
                return f"{name} has changed"
        name = _TIMESTAMP_FILE
        read_json(os.path.join(folder, name), "the time stamp")
    except OSError as error:
        return f"{name}: {reason(error)}"
    except (UserError, ValueError, TypeError):
        return f"{name} cannot be read"
    return ""


def set_unreadable_aside(workdir: str) -> None:
    """Moves what only looks like a checkpoint to `unreadable/`, with a warning that names it.

    Unfinished saves are deleted. Other files, whose name is not a number, stay.

    Raises:
        UserError: it cannot be moved or deleted.
    """
    directory = os.path.join(workdir, config_lib.CHECKPOINTS)
    if not os.path.isdir(directory):
        return
    try:
        remove_leftovers(directory)
        for name in sorted(os.listdir(directory)):
            path = os.path.join(directory, name)
            if name.isdigit() and (damage := find_damage(path)):
                target = _free_name(os.path.join(workdir, UNREADABLE, name))
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.rename(path, target)
                _log.warning("checkpoint %s is unreadable (%s): moved to %s", path, damage, target)
    except OSError as error:
        raise UserError(
            f"cannot clean up {directory}: {error.filename}: {error.strerror}"
        ) from error


def remove_leftovers(directory: str) -> None:
    """Deletes old checkpoints, and what is left of saves that were killed or failed."""
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        if _UNFINISHED in name or name == DELETED:
            shutil.rmtree(os.path.join(directory, name))


def read_validations(directory: str) -> dict[int, dict[str, Any]]:
    """Validation metrics by step, of the checkpoints that have any."""
    validations = {}
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        path = os.path.join(directory, name, VALIDATION_FILE)
        if not name.isdigit() or not os.path.exists(path):
            continue
        try:
            values = read_json(path, "the validation")
        except UserError:
            values = None
        if _is_validation(values):
            validations[int(name)] = values
        else:
            _log.warning("%s cannot be read: step %s counts as not validated", path, name)
    return validations


def read_best_metric(directory: str) -> str:
    """What decides which checkpoint is the best (older versions: top-1); a UserError if damaged."""
    path = os.path.join(directory, BEST_METRIC_FILE)
    if not os.path.lexists(path):
        return "top1"
    found = read_json(path, "the metric of the best checkpoint")
    metric = found.get("best_metric", "") if isinstance(found, dict) else ""
    choices = config_lib.KEYS["best_metric"].choices
    if metric not in choices:
        raise UserError(f"{path} names none of {', '.join(choices)}: delete it to choose by top1")
    return metric


def _is_validation(values: Any) -> bool:
    """Whether these are metrics; a loss that is not finite is stored as null."""
    if not isinstance(values, dict) or "loss" not in values:
        return False
    numbers = [values["loss"] or 0.0, *(values.get(name) for name in ("top1", "count"))]
    return all(isinstance(number, (int, float)) for number in numbers)


def _files(folder: str) -> list[str]:
    """Names of the regular files in a folder that are read."""
    paths = (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)
    names = (os.path.relpath(path, folder) for path in paths if os.path.isfile(path))
    return sorted(name for name in names if name != _TIMESTAMP_FILE)


def _sums(folder: str, name: str) -> tuple[int, int]:
    """Size and CRC-32 of a file."""
    size = crc = 0
    with open(os.path.join(folder, name), "rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def _free_name(path: str) -> str:
    taken, number = path, 0
    while os.path.exists(path):
        number += 1
        path = f"{taken}.{number}"
    return path
