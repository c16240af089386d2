"""Integrity of checkpoint folders: one checksum per file, and the handling of damaged folders.

A killed process, a full disk or an interrupted copy leaves a folder that looks like a checkpoint.
Reading it may crash or hang, so every byte is verified before anything else reads the folder.
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
BEST_METRIC_FILE = "best_metric.json"  # the metric that decides which checkpoint is the best
UNREADABLE = "unreadable"
# Old checkpoints are moved here before deletion: a partly deleted one must not look damaged.
DELETED = ".deleted"

# Orbax adds the time to this file after the checksums are computed; it must at least be JSON.
_TIMESTAMP_FILE = "_CHECKPOINT_METADATA"
_UNFINISHED = ".orbax-checkpoint-tmp"
_CHUNK = 1 << 20
_log = logging.getLogger(__name__)


def write_checksums(directory: str, step: int) -> None:
    """Writes the checksums of a step's unfinished save, just before it gets its final name."""
    names = [name for name in os.listdir(directory) if name.startswith(f"{step}{_UNFINISHED}")]
    if len(names) != 1:
        raise RuntimeError(f"{directory}: expected one unfinished save of step {step}, got {names}")
    folder = os.path.join(directory, names[0])
    write_json(
        os.path.join(folder, CHECKSUMS_FILE), {name: _sums(folder, name) for name in _files(folder)}
    )


def find_damage(folder: str) -> str:
    """Describes why a checkpoint cannot be trusted; empty if it is intact."""
    name = CHECKSUMS_FILE
    try:
        expected = dict(read_json(os.path.join(folder, name), "the checksums"))
        if not expected:
            return f"{name} lists no files"
        present = set(_files(folder))
        for name, (size, crc) in expected.items():
            if name not in present:
                return f"{name} is missing"
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
    """Moves damaged checkpoints to `unreadable/` and logs a warning for each of them.

    Unfinished saves are deleted. Other entries, whose name is not a number, are left alone.

    Raises:
        UserError: a folder cannot be moved or deleted.
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
    """Deletes discarded checkpoints and the remains of killed or failed saves."""
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        if _UNFINISHED in name or name == DELETED:
            shutil.rmtree(os.path.join(directory, name))


def read_validations(directory: str) -> dict[int, dict[str, Any]]:
    """Returns the stored validation metrics by step."""
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
            _log.warning("%s cannot be read: treating step %s as not validated", path, name)
    return validations


def read_best_metric(directory: str) -> str:
    """Returns the metric that decides which checkpoint is the best; top-1 if none is stored.

    Older versions stored none.

    Raises:
        UserError: the file is damaged.
    """
    path = os.path.join(directory, BEST_METRIC_FILE)
    if not os.path.lexists(path):
        return "top1"
    found = read_json(path, "the metric of the best checkpoint")
    metric = found.get("best_metric", "") if isinstance(found, dict) else ""
    choices = config_lib.KEYS["best_metric"].choices
    if metric not in choices:
        raise UserError(
            f"{path} does not name one of {', '.join(choices)}: delete it to choose by top1"
        )
    return metric


def _is_validation(values: Any) -> bool:
    """Returns whether these are metrics; a loss that is not finite is stored as null."""
    if not isinstance(values, dict) or "loss" not in values:
        return False
    numbers = [values["loss"] or 0.0, *(values.get(name) for name in ("top1", "count"))]
    return all(isinstance(number, (int, float)) for number in numbers)


def _files(folder: str) -> list[str]:
    """Returns the sorted relative paths of the files to verify."""
    paths = (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)
    names = (os.path.relpath(path, folder) for path in paths if os.path.isfile(path))
    return sorted(name for name in names if name != _TIMESTAMP_FILE)


def _sums(folder: str, name: str) -> tuple[int, int]:
    """Returns the size in bytes and the CRC-32 of a file."""
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
