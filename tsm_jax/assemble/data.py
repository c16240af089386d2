"""Builds the data part of a recipe: sources, readers, class names, rendered videos, batches."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from tsm_jax.data.lists import read_frame_list, read_video_list
from tsm_jax.data.pipeline import (
    Batch,
    HostShare,
    Reading,
    TrainOrder,
    eval_batches,
    train_batches,
)
from tsm_jax.data.sources import (
    EvalClips,
    Source,
    SyntheticSource,
    TrainClips,
    VideoSource,
    measure_frame_rate,
)
from tsm_jax.data.transforms import mirrored_labels
from tsm_jax.errors import UserError
from tsm_jax.terminal import progress_bar, typed
from tsm_jax.training.processes import wait_for_all
from tsm_jax.weights.labels import labels_for, numbered, read_labels
from tsm_jax.weights.model_directory import LABELS_FILE

SYNTHETIC_CLIPS = 1024
RENDER_SEED = 0


def build_source(data: ConfigDict, split: str, num_classes: int) -> Source:
    """Opens the clips of a list of `config.data`; imports only what its kind of source needs.

    Args:
        split: `train` or `val`.
        num_classes: labels must be below this number.
    """
    list_path = data.train_list if split == "train" else data.val_list
    prefix = data.prefix or (os.path.dirname(list_path) if data.render else "")
    if data.source == "synthetic":
        return SyntheticSource(SYNTHETIC_CLIPS, num_classes)
    if data.source == "packed":
        from tsm_jax.data.packed import open_packed

        return open_packed(list_path, num_classes)
    read = read_frame_list if data.source == "frames" else read_video_list
    entries = read(list_path, prefix=prefix, suffix=data.suffix, num_classes=num_classes)
    if data.source == "frames":
        from tsm_jax.data.frames import FrameSource

        return FrameSource(entries, data.frame_template)
    return VideoSource(entries)


def build_train_clips(config: ConfigDict, source: Source) -> TrainClips:
    """Returns the reader of augmented training clips.

    Raises:
        UserError: the class of some mirrored clips is unknown (see `mirrored_labels`).
    """
    swap = config.data.flip_labels == "swap" and config.data.flip
    return TrainClips(
        source,
        num_segments=config.model.num_segments,
        crop_size=config.data.crop_size,
        flip=config.data.flip,
        sampling=config.data.sampling,
        seed=config.seed,
        skip_unreadable=config.data.on_error == "skip",
        crop=config.data.crop,
        crop_scales=config.data.crop_scales,
        color_jitter=config.data.color_jitter,
        mirrored_labels=mirrored_labels(class_names(config)) if swap else None,
    )


def read_train_batches(config: ConfigDict, clips: TrainClips, steps: range) -> Iterator[Batch]:
    """Yields this process's part of the training batches for some steps of the run."""
    return train_batches(
        clips,
        TrainOrder(len(clips.source), config.batch_size, config.seed),
        batch_size=config.batch_size,
        steps=steps,
        reading=_reading(config),
        host=_host_share(),
    )


def read_eval_batches(config: ConfigDict, clips: EvalClips, batch_size: int) -> Iterator[Batch]:
    """Yields this process's part of the batches of all clips, padded at the end."""
    reading, host = _reading(config), _host_share()
    return eval_batches(clips, batch_size=batch_size, reading=reading, host=host)


def _reading(config: ConfigDict) -> Reading:
    return Reading(threads=config.data.threads, workers=config.data.workers)


def _host_share() -> HostShare:
    return HostShare(jax.process_index(), jax.process_count())


def clips_by_class(config: ConfigDict, source: Source) -> np.ndarray:
    """Returns the number of clips of each class, int `[K]`."""
    labels = [source.label(index) for index in range(len(source))]
    return np.bincount(labels, minlength=config.model.num_classes)


def class_names(config: ConfigDict) -> list[str]:
    """Returns the names of `config.model.num_classes` classes, in the order of the labels.

    The names are those in `config.data.labels`; else those in labels.txt beside the training list;
    else those of Kinetics-400 or UCF-101, if the number of classes matches; else `class 0`,
    `class 1` and so on.

    Raises:
        UserError: the file cannot be read or has a different number of lines.
    """
    num_classes = config.model.num_classes
    path = _labels_file(config)
    if path is None:
        return labels_for(num_classes) or numbered(num_classes)
    names = read_labels(path)
    if len(names) != num_classes:
        raise UserError(
            f"{path} has {len(names)} class names, but config.model.num_classes is {num_classes}:"
            f" set --config.model.num_classes={len(names)}, or set --config.data.labels to another"
            " file"
        )
    return names


def with_num_classes(config: ConfigDict) -> ConfigDict:
    """Returns the recipe with its number of classes; 0 becomes the number of class names.

    Raises:
        UserError: there are no class names to count, or they cannot be read.
    """
    if config.model.num_classes:
        return config
    path, train_list = _labels_file(config), config.data.train_list
    if path is None and not os.path.exists(train_list):
        raise UserError(
            f"{train_list} does not exist: create it with `{typed('prepare')} lists folders"
            f" --videos DIR --val_share 0.2 --output {os.path.dirname(train_list) or '.'}`, or set"
            " --config.data.train_list"
        )
    if path is None:
        raise UserError(
            f"{train_list} has an unknown number of classes, as there is no {LABELS_FILE} beside"
            " it: set --config.data.labels to a file of class names, or set"
            " --config.model.num_classes"
        )
    counted = copy.deepcopy(config)
    counted.model.num_classes = len(read_labels(path))
    return counted


def with_frame_rate(config: ConfigDict, source: Source) -> ConfigDict:
    """Returns the recipe with its frame rate; 0 becomes the measured one of the training clips.

    It stays 0 if it cannot be measured.
    """
    if config.data.frame_rate:
        return config
    measured = copy.deepcopy(config)
    measured.data.frame_rate = measure_frame_rate(source, config.model.num_segments)
    return measured


def _labels_file(config: ConfigDict) -> str | None:
    beside = os.path.join(os.path.dirname(config.data.train_list), LABELS_FILE)
    return config.data.labels or (beside if os.path.isfile(beside) else None)


def ensure_rendered(config: ConfigDict) -> None:
    """Renders the recipe's data set beside its training list, unless it already exists.

    Raises:
        UserError: the folder contains another data set.
    """
    if config.data.render != "moving_shapes":
        return
    if jax.process_index() == 0:
        _render(config)
    wait_for_all("rendered")


def _render(config: ConfigDict) -> None:
    from tsm_jax.data import moving_shapes

    directory = os.path.dirname(config.data.train_list)
    train_videos, val_videos = config.data.rendered_clips
    with progress_bar("render") as update:

        def show(done: int, total: int) -> None:
            if done == 1:
                print(f"rendering {total} videos into {directory}", flush=True)
            update(done, total)

        moving_shapes.ensure(
            directory,
            train_videos=train_videos,
            val_videos=val_videos,
            seed=RENDER_SEED,
            on_progress=show,
        )
