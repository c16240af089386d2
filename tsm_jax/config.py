"""The keys of a recipe with their units and defaults, their validation, and the training plan.

A recipe (a file in `configs/`) starts from `default()` and changes values. The result is locked:
a key that is not listed here is an error. `make_plan` converts epochs to steps after all overrides
have been applied, based on the real length of the data.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from ml_collections import ConfigDict

from tsm_jax.data import sampling
from tsm_jax.errors import UserError
from tsm_jax.files import upgraded
from tsm_jax.models import architecture
from tsm_jax.models.architecture import BACKBONES

# The checkpoint folder of a workdir; a directory that contains one is a workdir.
CHECKPOINTS = "checkpoints"
# The file of a workdir that keeps what `probe` has found.
PROBE_FILE = "probe.json"


def _from_version_1(recipe: dict[str, Any]) -> dict[str, Any]:
    """0.1.0 identified ResNets by depth and allowed two clip layouts, with identical results."""
    recipe = {"best_metric": "top1", **recipe}
    if "model.depth" in recipe:
        recipe["model.backbone"] = f"resnet{recipe.pop('model.depth')}"
    recipe.pop("model.data_format", None)
    return recipe


def _from_version_2(recipe: dict[str, Any]) -> dict[str, Any]:
    """Version 2 stored no frame rates and did not swap the labels of mirrored clips. It had no
    class balancing, mixup, frozen parts or colour jitter, and warmed up before the schedule."""
    new = {
        "class_balance": 0.0,
        "mixup": 0.0,
        "patience": 0,
        "model.frozen_batch_norm": "none",
        "model.running_variance": "biased",
        "optimizer.nesterov": False,
        "optimizer.warmup_start": 0.0,
        "optimizer.frozen": (),
        "data.groups": "",
        "data.sampling": "uniform",
        "data.crop_scales": (1.0, 0.875, 0.75, 0.66),
        "data.color_jitter": 0.0,
        "data.frame_rate": 0.0,
        "data.flip_labels": "keep",
    }
    return {**new, **recipe}


def _from_version_3(recipe: dict[str, Any]) -> dict[str, Any]:
    """Version 3 always evaluated with running batch-norm statistics and had one kind of crop."""
    new = {"precise_batch_norm": 0, "precise_batch_norm_batches": 200, "data.crop": "multi_scale"}
    return {**new, **recipe}


def _from_version_4(recipe: dict[str, Any]) -> dict[str, Any]:
    """Version 4 always kept the classifier of the last step."""
    return {"refit_classifier": 0.0, **recipe}


# Upgrades of stored recipes from older versions, as flat dictionaries with dotted keys. A new key,
# or a new meaning of a value, needs a new version: add a function that sets what recipes without it
# meant.
UPGRADES = (_from_version_1, _from_version_2, _from_version_3, _from_version_4)
VERSION = len(UPGRADES) + 1

# Hints for keys of older versions on the command line.
OLD_KEYS = {
    "model.depth": "did you mean --config.model.backbone=resnet{value}?",
    "model.data_format": "remove it: the clip layout has never affected results",
}


class Key(NamedTuple):
    """A key of a recipe.

    Attributes:
        choices: allowed values.
        range: smallest and largest allowed number, for a tuple of each element. The upper bounds
            also reject sizes that fit in no memory, at once and with a one-line error.
        changeable: whether a run may be resumed with another value. A difference in any other key
            makes it a different run.
    """

    default: Any
    choices: Collection[Any] = ()
    range: tuple[float, float] | None = None
    changeable: bool = False


# By dotted name. The defaults are those of PaddleVideo's Kinetics-400 training.
KEYS = {
    # Precision of convolutions and activations: `float32`, `bfloat16`, or `auto` (bfloat16 on GPU
    # and TPU, float32 on CPU). Parameters, statistics, logits and loss are float32 throughout.
    "dtype": Key("auto", choices=("auto", "float32", "bfloat16")),
    # Seed of initial weights, data order, augmentation and dropout.
    "seed": Key(1234, range=(0, 2**31 - 1)),
    # Clips per optimizer step, over all devices and hosts.
    "batch_size": Key(128, range=(1, 10**6)),
    # Clips per evaluation step, over all devices and hosts. 0: batch_size / accumulation_steps.
    "eval_batch_size": Key(0, range=(0, 10**6), changeable=True),
    # Number of parts in which a batch is computed sequentially, for batches that do not fit in
    # memory. The result is the same if each part consists of whole batch-norm groups.
    "accumulation_steps": Key(1, range=(1, 10**6), changeable=True),
    # Recompute activations in the backward pass instead of storing them: a third more work, but a
    # fraction of the memory.
    "remat": Key(False, changeable=True),
    # Bitwise reproducible runs on a GPU, at the cost of speed (always the case on CPU and TPU).
    "deterministic": Key(False),
    # Number of passes over the training list.
    "epochs": Key(50, range=(1, 10**6), changeable=True),
    # Exponent a of the class weights in the loss, (1 / clips of the class)^a. 0: no weights, every
    # clip counts the same. 1: every class counts the same.
    "class_balance": Key(0.0, range=(0.0, 1.0)),
    # Share of the target that label smoothing distributes over all classes. 0: no smoothing.
    "label_smoothing": Key(0.0, range=(0.0, 0.99)),
    # Parameter of mixup (Zhang et al. 2018): pairs of training clips and their targets are mixed in
    # a ratio drawn from Beta(mixup, mixup), once per step. 0: no mixup.
    "mixup": Key(0.0, range=(0.0, 100.0)),
    # Interval of precise batch norm (PaddleVideo's precise BN), in epochs: after the first epoch of
    # each interval and after the last epoch of the run, means over whole batches replace the
    # running statistics before the checkpoint is saved. 0: never.
    "precise_batch_norm": Key(0, range=(0, 10**6)),
    # Number of training batches for these means, at most one epoch.
    "precise_batch_norm_batches": Key(200, range=(1, 10**6)),
    # Strength of the ridge regression that refits the classifier after the last epoch, on the
    # trained network's features of the unaugmented training clips. It helps with few clips
    # (benchmarks/RESULTS.md, "Few real clips"). 0: keep the classifier of the last step, which is
    # also what happens if `patience` ends the run.
    "refit_classifier": Key(0.0, range=(0, 10**6)),
    # Initial weights: a .pdparams, a model directory, a workdir, an https URL or a name from the
    # zoo. Empty: random weights.
    "init_from": Key(""),
    # Also load the classifier from init_from; otherwise it is initialised randomly.
    "init_head": Key(False),
    # Names (or prefixes of names) of tensors that may be missing, unexpected or of another shape in
    # init_from; they are initialised randomly.
    "init_ignore": Key(()),
    # Folder for the checkpoints, logs and recipe of the run. Empty: output/<recipe>, plus the
    # overridden config.model keys, because training another model is another run.
    "workdir": Key("", changeable=True),
    # Steps between log lines.
    "log_every": Key(20, range=(1, 2**31 - 1), changeable=True),
    # Steps between checkpoints within an epoch. 0: only at the end of each epoch.
    "checkpoint_every": Key(0, range=(0, 2**31 - 1), changeable=True),
    # Number of steps in the whole run that may be skipped because their loss, gradient or update is
    # not finite; one more stops the run. 0: stop at the first.
    "max_bad_steps": Key(0, range=(0, 2**31 - 2), changeable=True),
    # Validation metric that selects the best checkpoint: `top1`, or `mean_recall`, the recall
    # averaged over classes, for classes of unequal sizes.
    "best_metric": Key("top1", choices=("top1", "mean_recall"), changeable=True),
    # Stop the run after this many epochs without a better checkpoint. 0: never stop early.
    "patience": Key(0, range=(0, 10**6), changeable=True),
    # Image network into which the shifts are inserted: a name from tsm_jax/models/architecture.py.
    "model.backbone": Key("resnet50", choices=BACKBONES),
    # Channels of its stem; the paper uses 64.
    "model.width": Key(64, range=(8, 1024)),
    # Number of classes K. 0: the number of class names (`data.labels`).
    "model.num_classes": Key(400, range=(0, 10**6)),
    # Frames per clip T, one from each of T equal parts of the video.
    "model.num_segments": Key(8, range=(1, 1024)),
    # Direction of the first fold of channels: `past_first` (PaddleVideo), `future_first` (MIT,
    # mmaction2), `past_only` (no second fold: the network can follow a live stream), or `none` for
    # a network without shift (TSN).
    "model.shift": Key("past_first", choices=architecture.SHIFTS),
    # Share of the channels shifted in each direction: `1/8` (the paper, MIT, mmaction2) or
    # `1/num_segments` (PaddleVideo; the same at 8 segments).
    "model.shift_fraction": Key("1/8", choices=architecture.SHIFT_FRACTIONS),
    # Shift in every n-th block of a stage: 1, or 2 as in MIT's ResNet-101 and -152.
    "model.shift_every": Key(1, choices=architecture.SHIFT_EVERY),
    # Dropout rate before the classifier.
    "model.dropout": Key(0.5, range=(0.0, 0.99)),
    # Number of clips over which batch norm computes its statistics (16: the reference's batch per
    # GPU), so that a recipe gives the same result on any number of devices. 0: the whole batch.
    "model.batch_norm_group": Key(16, range=(0, 10**6)),
    # Frozen batch-norm layers: in training they normalise with their running statistics, which are
    # not updated, and scale and bias are not trained. `none`, `all`, or `all_but_first` (MIT's
    # "partial batch norm").
    "model.frozen_batch_norm": Key("none", choices=("none", "all", "all_but_first")),
    # Estimator of the running variance: `biased`, or `unbiased` as in PyTorch.
    "model.running_variance": Key("biased", choices=("biased", "unbiased")),
    # Kind of data: lists of `videos` (lines `path label`) or of `frames` (lines `folder num_frames
    # label`); `packed` (folders written by `prepare pack`, instead of lists); or `synthetic` (no
    # lists: random pixels, for benchmarks).
    "data.source": Key("videos", choices=("videos", "frames", "packed", "synthetic")),
    # Lists (or packed folders) of the training and validation clips, and a prefix and suffix that
    # are added to each path in a list.
    "data.train_list": Key("data/k400/train.list"),
    "data.val_list": Key("data/k400/val.list", changeable=True),
    "data.prefix": Key(""),
    "data.suffix": Key(""),
    # File name of frame i (counted from 1) in a folder of frames.
    "data.frame_template": Key("img_{:05}.jpg"),
    # File of class names, one per line. Empty: labels.txt next to the training list, if it exists.
    "data.labels": Key(""),
    # CSV file with the columns `clip` (as in the list) and `group`, for example the recording from
    # which a clip was cut. Clips of a group are similar, so `probe` never splits a group. Empty:
    # groups.csv next to the training list, if it exists.
    "data.groups": Key("", changeable=True),
    # Built-in data set that is rendered next to the training list on first use: `moving_shapes`.
    # Empty: the lists already exist.
    "data.render": Key("", choices=("", "moving_shapes")),
    # Number of its training and validation clips.
    "data.rendered_clips": Key((1200, 400), range=(1, 10**6)),
    # Frames per second that the network sees: T frames divided by the length of a typical clip. It
    # is stored with the weights and sets the rate of live streams. 0: measured from the training
    # videos; unknown for folders of frames.
    "data.frame_rate": Key(0.0, range=(0.0, 1000.0), changeable=True),
    # Side of the network's square input, in pixels.
    "data.crop_size": Key(224, range=(32, 4096)),
    # Length of the short side to which evaluation scales a frame before cropping, in pixels.
    "data.short_side": Key(256, range=(32, 4096)),
    # Protocol (tsm_jax/data/protocols.py) that defines the views of a clip in `evaluate`; lower
    # eval_batch_size for many views. Empty: the single view of validation.
    "data.protocol": Key("", changeable=True),
    # Frame sampling in training: one frame from each of T equal parts (`uniform`, which like the
    # references never draws the last up to T - 1 frames; `whole`, which does, and that matters for
    # clips with few frames), or every 64/T-th frame of a window of 64 (`dense`). Validation samples
    # uniformly; data.protocol offers dense protocols.
    "data.sampling": Key("uniform", choices=sampling.TRAINING),
    # Mirror half of the training clips.
    "data.flip": Key(True),
    # Random crop of a training clip: `multi_scale` (TSM), or `pptsm`, which scales the clip to 4:3
    # and then cuts out a random square.
    "data.crop": Key("multi_scale", choices=sampling.TRAINING_CROPS),
    # Possible sides of the random crop, as shares of the short side. `(1,)` keeps most of the
    # picture, for fixed cameras and small differences.
    "data.crop_scales": Key((1.0, 0.875, 0.75, 0.66), range=(0.05, 1.0)),
    # Largest relative change of a training clip's brightness, contrast and saturation, the same for
    # all of its frames. 0: none.
    "data.color_jitter": Key(0.0, range=(0.0, 1.0)),
    # Labels of mirrored clips: `swap` classes whose names differ only in left and right, or in
    # clockwise and counterclockwise (an error if one of the two is missing), or `keep` all labels.
    "data.flip_labels": Key("swap", choices=("swap", "keep"), changeable=True),
    # Data-loading threads per process. 0: one per core that the process may use.
    "data.threads": Key(0, range=(0, 1024), changeable=True),
    # Data-loading worker processes. 0: threads of the main process, which is faster unless Python
    # itself is the bottleneck.
    "data.workers": Key(0, range=(0, 128), changeable=True),
    # Unreadable clips in training: `raise` stops the run, `skip` replaces them with other clips.
    # Evaluation never replaces a clip.
    "data.on_error": Key("raise", choices=("raise", "skip"), changeable=True),
    # Peak learning rate of SGD.
    "optimizer.learning_rate": Key(0.02, range=(1e-12, 1000.0)),
    # Batch size for which learning_rate is meant; for another batch size the rate is scaled in
    # proportion (Goyal et al. 2017; combine it with a few warmup_epochs). 0: no scaling.
    "optimizer.reference_batch_size": Key(0, range=(0, 10**6)),
    # `step`: multiply by decay_factor at each of boundaries. `cosine`: from the end of the warm-up
    # to zero at the last step. `whole_cosine`: the cosine starts at the first step of the run, and
    # the warm-up replaces its beginning.
    "optimizer.schedule": Key("step", choices=("step", "cosine", "whole_cosine")),
    # Epochs after which the learning rate is reduced.
    "optimizer.boundaries": Key((20, 40), range=(1e-6, 1e6)),
    "optimizer.decay_factor": Key(0.1, range=(1e-6, 1.0)),
    # Length of the linear warm-up in epochs, and its start as a share of the peak.
    "optimizer.warmup_epochs": Key(0.0, range=(0.0, 1e6)),
    "optimizer.warmup_start": Key(0.0, range=(0.0, 1.0)),
    "optimizer.momentum": Key(0.9, range=(0.0, 0.9999)),
    # Use Nesterov momentum.
    "optimizer.nesterov": Key(False),
    # L2 coefficient, added to the clipped gradient (not decoupled).
    "optimizer.weight_decay": Key(1e-4, range=(0.0, 1.0)),
    # Parameters with weight decay: `weights` (of convolutions and classifier; never biases or batch
    # norm) or `fc` (only the classifier's weight, as in PaddleVideo's UCF-101 recipes).
    "optimizer.decay": Key("weights", choices=("weights", "fc")),
    # Maximum global norm of the raw gradient. 0: no limit.
    "optimizer.clip_norm": Key(20.0, range=(0.0, 1e6)),
    # Learning-rate multipliers of the classifier.
    "optimizer.fc_weight_multiplier": Key(5.0, range=(0.0, 1000.0)),
    "optimizer.fc_bias_multiplier": Key(10.0, range=(0.0, 1000.0)),
    # Parts of the network that keep their initial values, as prefixes of tensor names, for example
    # ("backbone.stem", "backbone.blocks.0"). No gradient is computed for them, which saves time if
    # they come first. Running statistics follow `model.frozen_batch_norm` instead.
    "optimizer.frozen": Key(()),
}


def default() -> ConfigDict:
    """Returns a complete, locked recipe with the default values."""
    config = ConfigDict({"model": {}, "data": {}, "optimizer": {}})
    for name, key in KEYS.items():
        group, _, last = name.rpartition(".")
        (config[group] if group else config)[last] = key.default
    return config.lock()


@dataclass(frozen=True)
class Plan:
    """The schedule of a recipe in optimizer steps.

    Attributes:
        steps_per_epoch: full batches in the training list; the remaining clips are left out of the
            epoch (the shuffle decides which).
        boundaries: steps at which the learning rate is reduced.
    """

    steps_per_epoch: int
    total_steps: int
    boundaries: tuple[int, ...]
    warmup_steps: int

    def step_in_epoch(self, done: int) -> int:
        """Returns the steps done in the last begun epoch: 1 to `steps_per_epoch`, or 0 at start."""
        return (done - 1) % self.steps_per_epoch + 1 if done else 0

    def ends_epoch(self, done: int) -> bool:
        """Returns whether `done` steps are a whole number of epochs, at least one."""
        return done > 0 and done % self.steps_per_epoch == 0


def make_plan(config: ConfigDict, num_train_clips: int) -> Plan:
    """Converts the epochs of a recipe to steps.

    Raises:
        UserError: the training list has less than one batch, the run has too many steps, or
            boundaries round to the same step.
    """
    steps_per_epoch = num_train_clips // config.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"{config.data.train_list}: {num_train_clips} clips do not fill one batch of"
            f" {config.batch_size}: set --config.batch_size to at most {num_train_clips}"
        )
    total_steps = steps_per_epoch * config.epochs
    if total_steps >= 2**31:  # counted in int32 on the devices
        why = (
            f"with {steps_per_epoch} steps per epoch, the run has {total_steps} steps; it must have"
            f" fewer than {2**31}"
        )
        _refuse(config, "epochs", why)
    boundaries = tuple(round(epoch * steps_per_epoch) for epoch in config.optimizer.boundaries)
    if config.optimizer.schedule == "step" and not all(
        earlier < later for earlier, later in itertools.pairwise((0, *boundaries))
    ):
        why = (
            f"with {steps_per_epoch} steps per epoch, they fall on steps {boundaries}, which must"
            " be greater than 0 and increasing"
        )
        _refuse(config, "optimizer.boundaries", why)
    warmup_steps = round(config.optimizer.warmup_epochs * steps_per_epoch)
    return Plan(steps_per_epoch, total_steps, boundaries, warmup_steps)


# With a smaller norm the network would silently learn nothing.
_SMALLEST_CLIP_NORM = 1e-6

# A name with one number, optionally of a fixed width: img_{:05}.jpg
_FRAME_TEMPLATE = re.compile(r"[^{}]*\{0?(:0?[1-9]?[0-9]?d?)?\}[^{}]*")

_CONTROL_CODES = re.compile(r"[\x00-\x1f\x7f]")


def validate(config: ConfigDict) -> None:
    """Checks all values that can be checked without the data.

    Raises:
        UserError: with the key, its value and what is allowed.
    """
    for name, value in flatten(config):
        _check_value(name, value)
    for faults in (_faults_of_data, _faults_of_batches, _faults_of_optimizer):
        for key, why in faults(config):
            _refuse(config, key, why)


def _refuse(config: ConfigDict, key: str, why: str) -> NoReturn:
    raise UserError(f"config.{key} is {get(config, key)!r}: {why}")


def _check_value(name: str, value: Any) -> None:
    key = KEYS[name]
    if type(value) is not type(key.default):  # ConfigDict takes None for anything, and True for 1
        kind = type(key.default).__name__
        raise UserError(f"config.{name} is {value!r}: it must be of type {kind}")
    if isinstance(value, str) and _CONTROL_CODES.search(value):
        raise UserError(f"config.{name} is {value!r}: it must not contain control characters")
    choices = key.choices
    if name == "data.protocol" and value:
        from tsm_jax.data.protocols import PROTOCOLS  # imported late because it imports OpenCV

        choices = PROTOCOLS
    if choices and value not in choices:
        allowed = ", ".join(map(repr, choices))
        raise UserError(f"config.{name} is {value!r}: it must be one of {allowed}")
    if key.range is None:
        return
    low, high = key.range
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise UserError(f"config.{name} is {value!r}: {number!r} is not a number")
        if not low <= number <= high:  # nan as well
            raise UserError(
                f"config.{name} is {value}: it must be at least {low:.10g} and at most {high:.10g}"
            )


_Faults = Iterator[tuple[str, str]]  # pairs of a key and why its value conflicts with others


def _faults_of_data(config: ConfigDict) -> _Faults:
    data, model = config.data, config.model
    if data.short_side < data.crop_size:
        yield "data.short_side", f"it must be at least config.data.crop_size ({data.crop_size})"
    if len(data.rendered_clips) != 2 or not all(type(n) is int for n in data.rendered_clips):
        why = "it must be two integers, the number of training and of validation clips"
        yield "data.rendered_clips", why
    if not _FRAME_TEMPLATE.fullmatch(data.frame_template):
        why = "it must be a file name with one number, such as img_{:05}.jpg"
        yield "data.frame_template", why
    if not all(isinstance(name, str) and name for name in config.init_ignore):
        yield "init_ignore", "it must contain tensor names"
    if data.sampling == "dense" and model.num_segments > 64:
        why = "dense sampling draws from 64 frames and allows at most 64 segments"
        yield "model.num_segments", f"{why}; set config.data.sampling=uniform"
    is_shifted = model.shift != "none" and model.shift_fraction == "1/num_segments"
    if is_shifted and model.num_segments < 2:
        why = "one frame cannot be shifted by 1/num_segments of its channels"
        yield "model.num_segments", f"{why}; set config.model.shift=none"


def _faults_of_batches(config: ConfigDict) -> _Faults:
    parts, frozen = config.accumulation_steps, config.model.frozen_batch_norm
    if config.batch_size % parts:
        yield "batch_size", f"it must be a multiple of config.accumulation_steps ({parts})"
    if config.precise_batch_norm and frozen != "none":
        why = f"it conflicts with config.model.frozen_batch_norm={frozen}: frozen layers keep their"
        yield "precise_batch_norm", f"{why} statistics; set the former to 0 or the latter to none"
    group, part = config.model.batch_norm_group, part_size(config)
    if group and part > group and part % group:
        why = f"it must be a multiple of config.model.batch_norm_group ({group})"
        if part < config.batch_size:
            why = f"config.batch_size / config.accumulation_steps is {part}: {why}"
        yield "batch_size", f"{why}, or set the latter to 0"


def _faults_of_optimizer(config: ConfigDict) -> _Faults:
    optimizer = config.optimizer
    boundaries, warmup = optimizer.boundaries, optimizer.warmup_epochs
    if any(later <= earlier for earlier, later in itertools.pairwise(boundaries)):
        yield "optimizer.boundaries", "each must be greater than the one before"
    if warmup > config.epochs:
        yield "optimizer.warmup_epochs", f"it must be at most config.epochs ({config.epochs})"
    if optimizer.schedule == "step" and boundaries and boundaries[0] < warmup:
        why = f"the first must not be less than config.optimizer.warmup_epochs ({warmup:g})"
        yield "optimizer.boundaries", why
    if 0 < optimizer.clip_norm < _SMALLEST_CLIP_NORM:
        why = f"it must be 0 (no limit) or at least {_SMALLEST_CLIP_NORM:g}"
        yield "optimizer.clip_norm", why
    if not all(isinstance(part, str) and part for part in optimizer.frozen):
        yield "optimizer.frozen", "it must contain prefixes of tensor names"
    if optimizer.frozen and not config.init_from:
        why = "without config.init_from these parts would keep random values"
        yield "optimizer.frozen", why
    low, high = KEYS["optimizer.learning_rate"].range or (0, 0)
    if not low <= (peak := peak_learning_rate(config)) <= high:
        why = f"it scales the learning rate to {peak:g}, which must be at least {low:g} and at most"
        yield "optimizer.reference_batch_size", f"{why} {high:g}"


def part_size(config: ConfigDict) -> int:
    """Returns the number of training clips computed at once, over all devices and hosts."""
    return config.batch_size // config.accumulation_steps


def peak_learning_rate(config: ConfigDict) -> float:
    """Returns the peak learning rate, scaled to the batch size if the recipe asks for it."""
    optimizer = config.optimizer
    if optimizer.reference_batch_size == 0:
        return optimizer.learning_rate
    return optimizer.learning_rate * config.batch_size / optimizer.reference_batch_size


def get(config: ConfigDict, key: str) -> Any:
    """Returns the value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys and values, in order."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, tuple(value) if isinstance(value, list) else value


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Converts a recipe to its stored form: nested dictionaries with a version."""
    return {"version": VERSION, **config.to_dict()}


def from_dict(values: dict[str, Any]) -> ConfigDict:
    """Restores a recipe from the result of `to_dict`, also of an older version.

    Raises:
        UserError: the version is newer, a key is missing or unknown, or a value has the wrong type.
    """
    config = default()
    if not isinstance(values, dict):
        raise UserError("the saved recipe is damaged: it is not a dictionary")
    given = dict(flatten(ConfigDict(values)))
    given = upgraded(given, given.pop("version", 1), UPGRADES, "the saved recipe")
    if KEYS.keys() != given.keys():
        names = ", ".join(sorted(KEYS.keys() ^ given.keys()))
        raise UserError(
            f"the keys of the saved recipe do not match its version: they differ in {names}; use"
            " the tsm_jax that wrote it, or train again"
        )
    for key, value in given.items():
        # Model values are untrusted. Optimizer values are only used to resume a run, and then the
        # recipe must equal a validated one.
        if key.startswith("model."):
            _check_value(key, value)
        *parents, last = key.split(".")
        try:
            (get(config, ".".join(parents)) if parents else config)[last] = value
        except (TypeError, ValueError):
            kind = type(KEYS[key].default).__name__
            raise UserError(
                f"the saved recipe is damaged: {key} is {value!r}; it must be of type {kind}"
            ) from None
    return config


def default_workdir(recipe_path: str, recipe: ConfigDict, config: ConfigDict) -> str:
    """Returns `output/<recipe>` plus overridden model keys: `output/quickstart,shift=none`."""
    before = dict(flatten(recipe.model))
    changes = [f"{key}={value}" for key, value in flatten(config.model) if value != before[key]]
    stem = os.path.splitext(os.path.basename(recipe_path))[0]
    return os.path.join("output", ",".join([stem, *changes]).replace("/", "_"))
