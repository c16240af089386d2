"""Class names of a data set."""

from __future__ import annotations

import os

from ml_collections import ConfigDict

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
    beside = os.path.join(os.path.dirname(config.data.train_list), LABELS_FILE)
    if config.data.labels:
        return read_labels(config.data.labels, num_classes)
    if os.path.isfile(beside):
        return read_labels(beside, num_classes)
    return labels_or_numbers(num_classes)
