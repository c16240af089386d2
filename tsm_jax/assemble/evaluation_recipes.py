"""Recipes for evaluating a model on videos that have none: class folders, or UCF-101."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from tsm_jax.config import default
from tsm_jax.data.lists import LABELS_FILE, list_lines
from tsm_jax.data.prepare.make_lists import class_key, folder_list
from tsm_jax.data.prepare.published import published_lists
from tsm_jax.errors import UserError
from tsm_jax.files import write_lines
from tsm_jax.weights.model_directory import Model


def class_folders(model: Model, videos: str, output: str) -> ConfigDict:
    """Returns a recipe for the `<class>/<video>` files of a folder; writes its list to `output`.

    The folders need not cover all of the model's classes. In class names, only letters and digits
    are compared.

    Raises:
        UserError: there are no videos, or a folder is not one of the model's classes.
    """
    folder = Path(output, "class_folders")
    (folder / LABELS_FILE).unlink(missing_ok=True)  # of a model that was evaluated earlier
    list_path = str(folder / "videos.list")
    folder_list(videos, list_path, labels=model.labels)
    return _recipe(model, list_path, prefix=videos)


def ucf101(model: Model, data: str, output: str) -> ConfigDict:
    """Returns a recipe for the test list of UCF-101's split 1; writes its lists to `output`.

    Args:
        data: folder with `videos/` and `ucfTrainTestlist/`, as written by
            `prepare download ucf101`.

    Raises:
        UserError: something is missing in `data`, or the model has other classes.
    """
    splits, videos = os.path.join(data, "ucfTrainTestlist"), os.path.join(data, "videos")
    folder = os.path.join(output, "ucf101")
    names, _ = published_lists("ucf101", splits, folder, videos=videos)
    if [class_key(name) for name in names] != [class_key(name) for name in model.labels]:
        raise UserError(
            f"the model has {len(model.labels)} classes ({model.labels[0]}, ...), but {splits} has"
            f" {len(names)} ({names[0]}, ...): evaluate on videos of the model's classes"
        )
    list_path = os.path.join(folder, "ucf101_val_split_1_videos.txt")
    return _recipe(model, list_path, suffix=".avi")


def at_most(config: ConfigDict, most: int) -> ConfigDict:
    """Limits a recipe to `most` clips of its list, always the same random ones; 0 for all.

    They are drawn instead of evenly spaced, because the classes take turns in many lists.
    """
    clips = [line for _, line in list_lines(config.data.val_list)]
    if not most or len(clips) <= most:
        return config
    path = f"{config.data.val_list}.{most}"
    chosen = np.random.default_rng(0).permutation(len(clips))[:most]
    write_lines(path, [clips[i] for i in sorted(chosen)])
    config.data.val_list = path
    return config


def _recipe(model: Model, list_path: str, *, prefix: str = "", suffix: str = "") -> ConfigDict:
    config = default()
    for name, value in asdict(model.architecture).items():
        config.model[name] = value
    config.data.val_list = list_path
    config.data.prefix = prefix
    config.data.suffix = suffix
    return config
