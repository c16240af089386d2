"""Every key of a recipe with its unit and default, what is checked, and what follows from it.

A recipe (a file in `configs/`) starts from `default()` and changes values. The result is locked:
a key that is not listed here is an error. Quantities in epochs become steps in `make_plan`, after
all overrides and from the real length of the data.
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

# The folder of a workdir that holds its checkpoints; a directory that has one is a workdir.
CHECKPOINTS = "checkpoints"
# The file of a workdir that keeps what `probe` has found.
PROBE_FILE = "probe.json"


def _from_version_1(recipe: dict[str, Any]) -> dict[str, Any]:
    """0.1.0 knew ResNets by their depth, and took either layout of clips, to the same result."""
    recipe = {"best_metric": "top1", **recipe}
    if "model.depth" in recipe:
        recipe["model.backbone"] = f"resnet{recipe.pop('model.depth')}"
    recipe.pop("model.data_format", None)
    return recipe


def _from_version_2(recipe: dict[str, Any]) -> dict[str, Any]:
    """Frame rates were not noted and labels of mirrored clips not swapped; nothing was balanced,
    frozen or mixed; colours stayed; the warm-up came before the schedule."""
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
    """Batch norm was evaluated with its running statistics; there was one kind of crop."""
    new = {"precise_batch_norm": 0, "precise_batch_norm_batches": 200, "data.crop": "multi_scale"}
    return {**new, **recipe}


def _from_version_4(recipe: dict[str, Any]) -> dict[str, Any]:
    """The classifier was that of the last step."""
    return {"refit_classifier": 0.0, **recipe}


# What stored recipes of older versions mean, by dotted keys. A new key, or another meaning of a
# value, needs a new version: a function here that writes down what recipes without it meant.
UPGRADES = (_from_version_1, _from_version_2, _from_version_3, _from_version_4)
VERSION = len(UPGRADES) + 1

# What to write for keys of older versions on the command line.
OLD_KEYS = {
    "model.depth": "did you mean --config.model.backbone=resnet{value}?",
    "model.data_format": "leave it out, the layout of clips has never changed a result",
}


class Key(NamedTuple):
    """A key of a recipe.

    Attributes:
        choices: what it may be.
        range: the least and the greatest number, or those of each number in a tuple. The greatest
            ones also refuse, in one line and at once, what no memory holds.
        changeable: whether a run may be continued with another value; any other difference makes
            it another run.
    """

    default: Any
    choices: Collection[Any] = ()
    range: tuple[float, float] | None = None
    changeable: bool = False


# By dotted name. The values are those of PaddleVideo's Kinetics-400 training.
KEYS = {
    # Precision of convolutions and activations: `float32`, `bfloat16`, or `auto` (bfloat16 on GPU
    # and TPU, float32 on CPU). Parameters, statistics, logits and loss are float32 throughout.
    "dtype": Key("auto", choices=("auto", "float32", "bfloat16")),
    # Decides initial weights, order of the data, augmentation and dropout.
    "seed": Key(1234, range=(0, 2**31 - 1)),
    # Clips per optimizer step, over all devices and hosts.
    "batch_size": Key(128, range=(1, 10**6)),
    # Clips per evaluation step, over all devices and hosts. 0: as batch_size, or what is computed
    # at once of it.
    "eval_batch_size": Key(0, range=(0, 10**6), changeable=True),
    # Parts that a batch is computed in, one after the other, where it does not fit in memory. With
    # whole batch-norm groups in each part the result is the same.
    "accumulation_steps": Key(1, range=(1, 10**6), changeable=True),
    # Compute activations again in the backward pass instead of keeping them: a third more work,
    # and a fraction of the memory.
    "remat": Key(False, changeable=True),
    # The same bits in every run on a GPU too, where that costs speed (CPU and TPU: always so).
    "deterministic": Key(False),
    # Passes over the training list.
    "epochs": Key(50, range=(1, 10**6), changeable=True),
    # Exponent a of the weights of classes in the loss: with (1 / clips of the class)^a a rare class
    # counts as much per clip as a frequent one (0: none), up to as much in all (1).
    "class_balance": Key(0.0, range=(0.0, 1.0)),
    # Share of the target that label smoothing spreads over all classes. 0: none.
    "label_smoothing": Key(0.0, range=(0.0, 0.99)),
    # Mixup of training clips with their targets: two are mixed in shares that Beta(mixup, mixup)
    # draws, one draw a step (Zhang et al. 2018). 0: none.
    "mixup": Key(0.0, range=(0.0, 100.0)),
    # Epochs between two computations of batch norm's statistics for evaluation: after the first of
    # so many epochs, and after the last, means over whole batches take the place of the running
    # statistics before the checkpoint is saved (PaddleVideo's precise BN). 0: never.
    "precise_batch_norm": Key(0, range=(0, 10**6)),
    # Training batches that they are taken over, at most those of an epoch.
    "precise_batch_norm_batches": Key(200, range=(1, 10**6)),
    # After the last epoch the classifier is refitted: ridge regression onto the classes, of this
    # strength, on the trained network's features of the training clips as they are, which
    # helps where clips are few (benchmarks/RESULTS.md, "Few real clips"). 0: it stays that of the
    # last step, as it does where `patience` ends the run.
    "refit_classifier": Key(0.0, range=(0, 10**6)),
    # Weights to start from: a .pdparams, a model directory, a workdir, an https address or a name
    # of the zoo. Empty: random ones.
    "init_from": Key(""),
    # Take the classifier from there as well; otherwise it starts fresh.
    "init_head": Key(False),
    # Tensors by name, or by the start of it, that may be missing, unexpected or of another shape
    # there; they start fresh.
    "init_ignore": Key(()),
    # Where the run keeps its checkpoints, logs and recipe. Empty: output/<recipe>, with the
    # overridden config.model keys in the name, since a run of another model is another run.
    "workdir": Key("", changeable=True),
    # Steps between two log lines.
    "log_every": Key(20, range=(1, 2**31 - 1), changeable=True),
    # Steps between two checkpoints within an epoch. 0: at the end of each epoch only.
    "checkpoint_every": Key(0, range=(0, 2**31 - 1), changeable=True),
    # Steps of the whole run that may be skipped because their loss, gradient or update is not
    # finite; one more stops the run. 0: stop at the first.
    "max_bad_steps": Key(0, range=(0, 2**31 - 2), changeable=True),
    # What the best checkpoint has most of in its validation: `top1`, or `mean_recall`, the mean
    # over classes of the share of their clips that is recognised, for classes of unequal sizes.
    "best_metric": Key("top1", choices=("top1", "mean_recall"), changeable=True),
    # Epochs without a better one after which the run ends. 0: it never ends early.
    "patience": Key(0, range=(0, 10**6), changeable=True),
    # Image network that gets the shifts: a name of tsm_jax/models/architecture.py.
    "model.backbone": Key("resnet50", choices=BACKBONES),
    # Channels of its stem; 64 is the paper's.
    "model.width": Key(64, range=(8, 1024)),
    # Classes K. 0: as many as there are class names (`data.labels`).
    "model.num_classes": Key(400, range=(0, 10**6)),
    # Frames per clip T, one from each of T equal parts of the video.
    "model.num_segments": Key(8, range=(1, 1024)),
    # Direction of the first fold of channels: `past_first` (PaddleVideo), `future_first` (MIT,
    # mmaction2), `past_only` (no second fold: the network can follow a live stream), or `none` for
    # a network without shift (TSN).
    "model.shift": Key("past_first", choices=architecture.SHIFTS),
    # Share of the channels that moves in one direction: `1/8` (the paper, MIT, mmaction2) or
    # `1/num_segments` (PaddleVideo; the same at 8 segments).
    "model.shift_fraction": Key("1/8", choices=architecture.SHIFT_FRACTIONS),
    # Shift in every n-th block of a stage: 1, or 2 as MIT does in ResNet-101 and -152.
    "model.shift_every": Key(1, choices=architecture.SHIFT_EVERY),
    # Dropout rate in front of the classifier.
    "model.dropout": Key(0.5, range=(0.0, 0.99)),
    # Clips over which batch norm takes its statistics (16: the reference's batch per GPU), so that
    # a recipe means the same on any number of devices. 0: the whole batch.
    "model.batch_norm_group": Key(16, range=(0, 10**6)),
    # Batch-norm layers that use and keep their running statistics in training, and whose scale and
    # bias are not trained: `none`, `all`, or `all_but_first` (MIT's "partial batch norm").
    "model.frozen_batch_norm": Key("none", choices=("none", "all", "all_but_first")),
    # The running variance is the `biased` one of the batches, or the `unbiased` one as in PyTorch.
    "model.running_variance": Key("biased", choices=("biased", "unbiased")),
    # What the lists name: `videos` (lines `path label`), `frames` (lines `folder num_frames
    # label`); `packed` (instead of lists, folders that `prepare pack` wrote); or `synthetic` (no
    # lists: random pixels to measure with).
    "data.source": Key("videos", choices=("videos", "frames", "packed", "synthetic")),
    # The lists (or packed folders) of training and validation clips, and what is put before and
    # after each path of a list.
    "data.train_list": Key("data/k400/train.list"),
    "data.val_list": Key("data/k400/val.list", changeable=True),
    "data.prefix": Key(""),
    "data.suffix": Key(""),
    # File name of frame i (from 1) in a folder of frames.
    "data.frame_template": Key("img_{:05}.jpg"),
    # Class names, one a line. Empty: a file labels.txt beside the training list if there is one.
    "data.labels": Key(""),
    # A table (CSV) with the columns `clip` (as in the list) and `group`, such as the recording that
    # a clip was cut from: clips of a group are alike, and `probe` keeps them in one part. Empty: a
    # file groups.csv beside the training list if there is one.
    "data.groups": Key("", changeable=True),
    # Data set of our own to render at first use beside the training list: `moving_shapes`, or
    # empty for lists that exist.
    "data.render": Key("", choices=("", "moving_shapes")),
    # How many training and validation clips it has.
    "data.rendered_clips": Key((1200, 400), range=(1, 10**6)),
    # Frames per second that the network sees: its T frames over the length of a typical clip. It is
    # stored with the weights, and live streams are followed at this rate. 0: measured from the
    # training videos; of folders of frames nobody knows it.
    "data.frame_rate": Key(0.0, range=(0.0, 1000.0), changeable=True),
    # Side of the square that the network sees, pixels.
    "data.crop_size": Key(224, range=(32, 4096)),
    # Evaluation scales the short side of a frame to this before its centre is cropped, pixels.
    "data.short_side": Key(256, range=(32, 4096)),
    # Views that `evaluate` shows of a clip, by the name of a protocol (tsm_jax/data/protocols.py);
    # with many of them lower eval_batch_size. Empty: the one view of validation.
    "data.protocol": Key("", changeable=True),
    # Frames of a training clip: one from each T-th of it (`uniform`, which as in the references
    # never draws a rest of up to T - 1 frames at its end; `whole`, which does, and that matters
    # where clips have few frames), or every 64/T-th of a window of 64 frames (`dense`). Validation
    # is uniform; data.protocol has the dense ones.
    "data.sampling": Key("uniform", choices=sampling.TRAINING),
    # Mirror half of the training clips.
    "data.flip": Key(True),
    # A training clip's random crop: `multi_scale` (TSM), or `pptsm`, which scales to 4:3 before it
    # and cuts a random square out of it.
    "data.crop": Key("multi_scale", choices=sampling.TRAINING_CROPS),
    # Sides of a training clip's random crop, of the short side. `(1,)` keeps most of a picture, for
    # fixed cameras and small differences.
    "data.crop_scales": Key((1.0, 0.875, 0.75, 0.66), range=(0.05, 1.0)),
    # Brightness, contrast and saturation of a training clip change by up to this share, alike in
    # all of its frames. 0: not at all.
    "data.color_jitter": Key(0.0, range=(0.0, 1.0)),
    # Labels of mirrored clips: `swap` those of classes whose names differ in left and right only,
    # or in clockwise and counterclockwise (an error if one of two is missing), or `keep` all.
    "data.flip_labels": Key("swap", choices=("swap", "keep"), changeable=True),
    # Reading threads per process. 0: one per core that the process may use.
    "data.threads": Key(0, range=(0, 1024), changeable=True),
    # Worker processes that read. 0: threads of the main process, which is faster unless Python
    # itself is the bottleneck.
    "data.workers": Key(0, range=(0, 128), changeable=True),
    # An unreadable clip in training: `raise` stops the run, `skip` replaces it by another one.
    # Evaluation never replaces a clip.
    "data.on_error": Key("raise", choices=("raise", "skip"), changeable=True),
    # Peak learning rate of SGD.
    "optimizer.learning_rate": Key(0.02, range=(1e-12, 1000.0)),
    # Batch size that it is meant for: with another one it is scaled in proportion (Goyal et al.
    # 2017; take a few warmup_epochs with it). 0: it is taken as it is.
    "optimizer.reference_batch_size": Key(0, range=(0, 10**6)),
    # `step`: times decay_factor at each of boundaries. `cosine`: to zero at the last step.
    # `whole_cosine`: the same from the run's first step on, whose beginning the warm-up replaces.
    "optimizer.schedule": Key("step", choices=("step", "cosine", "whole_cosine")),
    # Epochs after which the learning rate steps down.
    "optimizer.boundaries": Key((20, 40), range=(1e-6, 1e6)),
    "optimizer.decay_factor": Key(0.1, range=(1e-6, 1.0)),
    # Epochs of linear warm-up, and where it starts, as a share of the peak.
    "optimizer.warmup_epochs": Key(0.0, range=(0.0, 1e6)),
    "optimizer.warmup_start": Key(0.0, range=(0.0, 1.0)),
    "optimizer.momentum": Key(0.9, range=(0.0, 0.9999)),
    # Look ahead along the velocity (Nesterov's momentum).
    "optimizer.nesterov": Key(False),
    # L2 coefficient, added to the clipped gradient (not decoupled).
    "optimizer.weight_decay": Key(1e-4, range=(0.0, 1.0)),
    # What decays: `weights` (of convolutions and classifier; never biases or batch norm) or `fc`
    # (the classifier's weight alone, as in PaddleVideo's UCF-101 recipes).
    "optimizer.decay": Key("weights", choices=("weights", "fc")),
    # Largest global norm of the raw gradient. 0: no limit.
    "optimizer.clip_norm": Key(20.0, range=(0.0, 1e6)),
    # Learning-rate multipliers of the classifier.
    "optimizer.fc_weight_multiplier": Key(5.0, range=(0.0, 1000.0)),
    "optimizer.fc_bias_multiplier": Key(10.0, range=(0.0, 1000.0)),
    # Parts of the network, by the beginning of their tensors' names, that keep the values they
    # start from, such as ("backbone.stem", "backbone.blocks.0"). No gradient is computed for them,
    # which saves time where they come first. Running statistics are those of batch norm
    # (`model.frozen_batch_norm`).
    "optimizer.frozen": Key(()),
}


def default() -> ConfigDict:
    """A complete, locked recipe."""
    config = ConfigDict({"model": {}, "data": {}, "optimizer": {}})
    for name, key in KEYS.items():
        group, _, last = name.rpartition(".")
        (config[group] if group else config)[last] = key.default
    return config.lock()


@dataclass(frozen=True)
class Plan:
    """What a recipe amounts to in steps.

    Attributes:
        steps_per_epoch: full batches in the training list; a rest is left out of that epoch (the
            shuffle decides which clips).
        boundaries: steps at which the learning rate steps down.
    """

    steps_per_epoch: int
    total_steps: int
    boundaries: tuple[int, ...]
    warmup_steps: int

    def step_in_epoch(self, done: int) -> int:
        """Of `done` steps those in the last epoch begun, 1 to `steps_per_epoch`; 0 before any."""
        return (done - 1) % self.steps_per_epoch + 1 if done else 0

    def ends_epoch(self, done: int) -> bool:
        """Whether `done` steps are whole epochs, at least one."""
        return done > 0 and done % self.steps_per_epoch == 0


def make_plan(config: ConfigDict, num_train_clips: int) -> Plan:
    """Derives steps from epochs.

    Raises:
        UserError: the training list holds less than one batch, the run has too many steps, or
            boundaries round to the same one.
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
            f"with {steps_per_epoch} steps each these are {total_steps} steps, which must be less"
            f" than {2**31}"
        )
        _refuse(config, "epochs", why)
    boundaries = tuple(round(epoch * steps_per_epoch) for epoch in config.optimizer.boundaries)
    if config.optimizer.schedule == "step" and not all(
        earlier < later for earlier, later in itertools.pairwise((0, *boundaries))
    ):
        why = (
            f"with {steps_per_epoch} steps in an epoch these are the steps {boundaries}, which must"
            " be different ones after the first"
        )
        _refuse(config, "optimizer.boundaries", why)
    warmup_steps = round(config.optimizer.warmup_epochs * steps_per_epoch)
    return Plan(steps_per_epoch, total_steps, boundaries, warmup_steps)


# Below it nothing would be learned, without a word.
_SMALLEST_CLIP_NORM = 1e-6

# A name with one number, perhaps of a fixed width: img_{:05}.jpg
_FRAME_TEMPLATE = re.compile(r"[^{}]*\{0?(:0?[1-9]?[0-9]?d?)?\}[^{}]*")

_CONTROL_CODES = re.compile(r"[\x00-\x1f\x7f]")


def validate(config: ConfigDict) -> None:
    """Checks every value that can be judged without looking at the data.

    Raises:
        UserError: names the key, its value and what it may be.
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
        from tsm_jax.data.protocols import PROTOCOLS  # late: it brings in OpenCV

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


_Faults = Iterator[tuple[str, str]]  # keys, and why their values do not fit others


def _faults_of_data(config: ConfigDict) -> _Faults:
    data, model = config.data, config.model
    if data.short_side < data.crop_size:
        yield "data.short_side", f"it must be at least config.data.crop_size ({data.crop_size})"
    if len(data.rendered_clips) != 2 or not all(type(n) is int for n in data.rendered_clips):
        why = "it must be two whole numbers, of training and of validation clips"
        yield "data.rendered_clips", why
    if not _FRAME_TEMPLATE.fullmatch(data.frame_template):
        why = "it must be a file name with one number in it, such as img_{:05}.jpg"
        yield "data.frame_template", why
    if not all(isinstance(name, str) and name for name in config.init_ignore):
        yield "init_ignore", "it must hold names of tensors"
    if data.sampling == "dense" and model.num_segments > 64:
        why = "dense sampling takes at most one segment for each of its 64 frames"
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
        why = f"not with config.model.frozen_batch_norm={frozen}: frozen layers keep their"
        yield "precise_batch_norm", f"{why} statistics; set one of the two to 0 or none"
    group, part = config.model.batch_norm_group, part_size(config)
    if group and part > group and part % group:
        why = f"it must be a multiple of config.model.batch_norm_group ({group})"
        if part < config.batch_size:
            why = f"config.batch_size / config.accumulation_steps is {part}: {why}"
        yield "batch_size", f"{why}, or set that to 0"


def _faults_of_optimizer(config: ConfigDict) -> _Faults:
    optimizer = config.optimizer
    boundaries, warmup = optimizer.boundaries, optimizer.warmup_epochs
    if any(later <= earlier for earlier, later in itertools.pairwise(boundaries)):
        yield "optimizer.boundaries", "each must be greater than the one before"
    if warmup > config.epochs:
        yield "optimizer.warmup_epochs", f"it must be at most config.epochs ({config.epochs})"
    if optimizer.schedule == "step" and boundaries and boundaries[0] < warmup:
        why = f"the first must not lie within config.optimizer.warmup_epochs ({warmup:g})"
        yield "optimizer.boundaries", why
    if 0 < optimizer.clip_norm < _SMALLEST_CLIP_NORM:
        why = f"it must be 0, for no limit, or at least {_SMALLEST_CLIP_NORM:g}"
        yield "optimizer.clip_norm", why
    if not all(isinstance(part, str) and part for part in optimizer.frozen):
        yield "optimizer.frozen", "it must hold names of tensors"
    if optimizer.frozen and not config.init_from:
        why = "without config.init_from these parts would keep random values"
        yield "optimizer.frozen", why
    low, high = KEYS["optimizer.learning_rate"].range or (0, 0)
    if not low <= (peak := peak_learning_rate(config)) <= high:
        why = f"it scales the learning rate to {peak:g}, which must be at least {low:g} and at most"
        yield "optimizer.reference_batch_size", f"{why} {high:g}"


def part_size(config: ConfigDict) -> int:
    """Training clips that are computed at once, over all devices and hosts."""
    return config.batch_size // config.accumulation_steps


def peak_learning_rate(config: ConfigDict) -> float:
    """Of the recipe's batch size, by the linear scaling rule if it is asked for."""
    optimizer = config.optimizer
    if optimizer.reference_batch_size == 0:
        return optimizer.learning_rate
    return optimizer.learning_rate * config.batch_size / optimizer.reference_batch_size


def get(config: ConfigDict, key: str) -> Any:
    """The value under a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


def flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values, in order."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, tuple(value) if isinstance(value, list) else value


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """A recipe as it is stored: nested dictionaries, with its version."""
    return {"version": VERSION, **config.to_dict()}


def from_dict(values: dict[str, Any]) -> ConfigDict:
    """A recipe from what `to_dict` gave, or that of an older version; strict about its keys.

    Raises:
        UserError: it is of a newer version, a key is missing or unknown, or a value is of another
            type.
    """
    config = default()
    if not isinstance(values, dict):
        raise UserError("the saved recipe is damaged: it is not a dictionary")
    given = dict(flatten(ConfigDict(values)))
    given = upgraded(given, given.pop("version", 1), UPGRADES, "the saved recipe")
    if KEYS.keys() != given.keys():
        names = ", ".join(sorted(KEYS.keys() ^ given.keys()))
        raise UserError(
            f"the saved recipe has other keys than one of its version: it differs in {names}; use"
            " the tsm_jax that wrote it, or train again"
        )
    for key, value in given.items():
        # The network's own values may come from anywhere; those of the optimizer are not used
        # unless the run goes on, with a recipe that is the same and has been validated.
        if key.startswith("model."):
            _check_value(key, value)
        *parents, last = key.split(".")
        try:
            (get(config, ".".join(parents)) if parents else config)[last] = value
        except (TypeError, ValueError):
            kind = type(KEYS[key].default).__name__
            raise UserError(
                f"the saved recipe is damaged: {key} is {value!r}, which is not of type {kind}"
            ) from None
    return config


def default_workdir(recipe_path: str, recipe: ConfigDict, config: ConfigDict) -> str:
    """`output/<recipe>`, and the model's overridden keys: `output/quickstart,shift=none`."""
    before = dict(flatten(recipe.model))
    changes = [f"{key}={value}" for key, value in flatten(config.model) if value != before[key]]
    stem = os.path.splitext(os.path.basename(recipe_path))[0]
    return os.path.join("output", ",".join([stem, *changes]).replace("/", "_"))
