"""Class names of a data set, and their number."""

from __future__ import annotations

import copy
import os

from ml_collections import ConfigDict

from tsm_jax.errors import UserError
from tsm_jax.weights.labels import labels_or_numbers, read_labels
from tsm_jax.weights.model_directory import LABELS_FILE


def class_names(config: ConfigDict) -> list[str]:
    """The names of `config.model.num_classes` classes, in the order of the labels.

    From `config.data.labels`; else from a labels.txt beside the training list; else, by their
    number, those of Kinetics-400 or UCF-101; else `class 0`, `class 1` and so on.

    Raises:
        UserError: the file cannot be read or has another number of lines.
    """
    num_classes = config.model.num_classes
    path = _labels_file(config)
    if path is None:
        return labels_or_numbers(num_classes)
    names = read_labels(path)
    if len(names) != num_classes:
        raise UserError(
            f"{path} has {len(names)} class names, config.model.num_classes is {num_classes}: set"
            f" --config.model.num_classes={len(names)}, or --config.data.labels to another file"
        )
    return names


def with_num_classes(config: ConfigDict) -> ConfigDict:
    """The recipe with its number of classes: where that is 0, as many as there are class names.

    Raises:
        UserError: there are no class names to count, or they cannot be read.
    """
    if config.model.num_classes:
        return config
    path = _labels_file(config)
    if path is None:
        raise UserError(_no_names(config))
    counted = copy.deepcopy(config)
    counted.model.num_classes = len(read_labels(path))
    return counted


def _labels_file(config: ConfigDict) -> str | None:
    beside = os.path.join(os.path.dirname(config.data.train_list), LABELS_FILE)
    return config.data.labels or (beside if os.path.isfile(beside) else None)


def _no_names(config: ConfigDict) -> str:
    train_list = config.data.train_list
    if not os.path.exists(train_list):
        return (
            f"there is no {train_list}: write it with `python -m tsm_jax.prepare lists folders"
            f" --videos DIR --val_share 0.2 --output {os.path.dirname(train_list) or '.'}`, or give"
            " --config.data.train_list"
        )
    return (
        f"how many classes has {train_list}? There is no {LABELS_FILE} beside it: set"
        " --config.data.labels to a file of class names, or --config.model.num_classes"
    )
