"""Where a recipe's strings and numbers become what reads its clips."""

from __future__ import annotations

import os

import jax
from ml_collections import ConfigDict

from tsm_jax.data.clips import EvalClips, TrainClips
from tsm_jax.data.lists import read_frame_list, read_video_list
from tsm_jax.data.packed import open_packed
from tsm_jax.data.pipeline import HostShare, Reading
from tsm_jax.data.protocols import EvalProtocol, eval_protocol
from tsm_jax.data.sources import FrameSource, Source, SyntheticSource, VideoSource
from tsm_jax.weights.model_directory import Preprocessing

SYNTHETIC_CLIPS = 1024


def build_source(data: ConfigDict, split: str, num_classes: int) -> Source:
    """The clips of `config.data.train_list` or `.val_list`.

    Args:
        data: `config.data`.
        split: `train` or `val`.
        num_classes: labels are below it.
    """
    list_path = data.train_list if split == "train" else data.val_list
    prefix = data.prefix or (os.path.dirname(list_path) if data.render else "")
    if data.source == "synthetic":
        return SyntheticSource(SYNTHETIC_CLIPS, num_classes)
    if data.source == "packed":
        return open_packed(list_path, num_classes)
    if data.source == "frames":
        entries = read_frame_list(
            list_path, prefix=prefix, suffix=data.suffix, num_classes=num_classes
        )
        return FrameSource(entries, data.frame_template)
    entries = read_video_list(list_path, prefix=prefix, suffix=data.suffix, num_classes=num_classes)
    return VideoSource(entries)


def build_train_clips(config: ConfigDict, source: Source) -> TrainClips:
    """The reader of augmented training clips."""
    return TrainClips(
        source,
        num_segments=config.model.num_segments,
        crop_size=config.data.crop_size,
        flip=config.data.flip,
        seed=config.seed,
        skip_unreadable=config.data.on_error == "skip",
    )


def build_eval_clips(
    source: Source, preprocessing: Preprocessing, num_segments: int, protocol: str = ""
) -> EvalClips:
    """The reader of clips that are evaluated, as `build_protocol` says."""
    return EvalClips(source, num_segments, build_protocol(preprocessing, protocol))


def build_protocol(preprocessing: Preprocessing, protocol: str = "") -> EvalProtocol:
    """The frames and pixels that a network is shown: its own protocol, or the one of that name."""
    return eval_protocol(
        protocol or preprocessing.protocol,
        short_side=preprocessing.short_side,
        crop_size=preprocessing.crop_size,
    )


def preprocessing_of(data: ConfigDict) -> Preprocessing:
    """The part of `config.data` that is stored with weights."""
    return Preprocessing(crop_size=data.crop_size, short_side=data.short_side)


def build_reading(config: ConfigDict) -> Reading:
    """How this process reads."""
    return Reading(threads=config.data.threads, workers=config.data.workers)


def host_share() -> HostShare:
    """This process's part of every batch."""
    return HostShare(jax.process_index(), jax.process_count())
