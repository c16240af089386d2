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
from typing import Any

from ml_collections import ConfigDict

from tsm_jax.data import crops, sampling
from tsm_jax.errors import UserError
from tsm_jax.models import architecture
from tsm_jax.models.backbones import BACKBONES
from tsm_jax.stored import upgraded

CHOICES: dict[str, Collection[Any]] = {
    "best_metric": ("top1", "mean_recall"),
    "dtype": ("auto", "float32", "bfloat16"),
    "model.backbone": BACKBONES,
    "model.shift": architecture.SHIFTS,
    "model.shift_fraction": architecture.SHIFT_FRACTIONS,
    "model.shift_every": architecture.SHIFT_EVERY,
    "model.frozen_batch_norm": ("none", "all", "all_but_first"),
    "model.running_variance": ("biased", "unbiased"),
    "data.source": ("videos", "frames", "packed", "synthetic"),
    "data.sampling": sampling.TRAINING,
    "data.crop": crops.TRAINING_CROPS,
    "data.render": ("", "moving_shapes"),
    "data.protocol": (
        "",
        "test",
        "paddle_predict",
        "paddle_dense",
        "mit_twice",
        "mit_dense",
        "mit_three_crop",
        "mit_twice_three_crop",
        "mit_dense_three_crop",
        "mit_ten_crop",
        "mmaction2_center_crop",
        "mmaction2_ten_crop",
        "mmaction2_dense_ten_crop",
        "mmaction2_dense_three_crop",
        "mmaction2_three_crop",
        "mmaction2_twice_three_crop",
    ),
    "data.flip_labels": ("swap", "keep"),
    "data.on_error": ("raise", "skip"),
    "optimizer.schedule": ("step", "cosine", "whole_cosine"),
    "optimizer.decay": ("weights", "fc"),
}

# The folder of a workdir that holds its checkpoints; a directory that has one is a workdir.
CHECKPOINTS = "checkpoints"
# The file of a workdir that keeps what `probe` has found.
PROBE_FILE = "probe.json"

# A run may be continued with other values of these; any other difference makes it another run.
CHANGEABLE_ON_RESUME = (
    "workdir",
    "epochs",
    "eval_batch_size",
    "accumulation_steps",
    "remat",
    "log_every",
    "checkpoint_every",
    "max_bad_steps",
    "best_metric",
    "patience",
    "data.val_list",
    "data.groups",
    "data.frame_rate",
    "data.protocol",
    "data.flip_labels",
    "data.threads",
    "data.workers",
    "data.on_error",
)


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


def default() -> ConfigDict:
    """A complete, locked recipe: the values of PaddleVideo's Kinetics-400 training."""
    config = ConfigDict()
    config.model = _model()
    config.data = _data()
    config.optimizer = _optimizer()

    # Precision of convolutions and activations: `float32`, `bfloat16`, or `auto` (bfloat16 on GPU
    # and TPU, float32 on CPU). Parameters, statistics, logits and loss are float32 throughout.
    config.dtype = "auto"
    # Decides initial weights, order of the data, augmentation and dropout.
    config.seed = 1234
    # Clips per optimizer step, over all devices and hosts.
    config.batch_size = 128
    # Clips per evaluation step, over all devices and hosts. 0: as batch_size, or what is computed
    # at once of it.
    config.eval_batch_size = 0
    # Parts that a batch is computed in, one after the other, where it does not fit in memory. With
    # whole batch-norm groups in each part the result is the same.
    config.accumulation_steps = 1
    # Compute activations again in the backward pass instead of keeping them: a third more work,
    # and a fraction of the memory.
    config.remat = False
    # The same bits in every run on a GPU too, where that costs speed (CPU and TPU: always so).
    config.deterministic = False
    # Passes over the training list.
    config.epochs = 50
    # Exponent a of the weights of classes in the loss: with (1 / clips of the class)^a a rare class
    # counts as much per clip as a frequent one (0: none), up to as much in all (1).
    config.class_balance = 0.0
    # Share of the target that label smoothing spreads over all classes. 0: none.
    config.label_smoothing = 0.0
    # Mixup of training clips with their targets: two are mixed in shares that Beta(mixup, mixup)
    # draws, one draw a step (Zhang et al. 2018). 0: none.
    config.mixup = 0.0
    # Epochs between two computations of batch norm's statistics for evaluation: after the first of
    # so many epochs, and after the last, means over whole batches take the place of the running
    # statistics before the checkpoint is saved (PaddleVideo's precise BN). 0: never.
    config.precise_batch_norm = 0
    # Training batches that they are taken over, at most those of an epoch.
    config.precise_batch_norm_batches = 200
    # After the last epoch the classifier is refitted: ridge regression onto the classes, of this
    # strength, on the trained network's features of the training clips as they are, which
    # helps where clips are few (benchmarks/RESULTS.md, "Few real clips"). 0: it stays that of the
    # last step, as it does where `patience` ends the run.
    config.refit_classifier = 0.0
    # Weights to start from: a .pdparams, a model directory, a workdir, an https address or a name
    # of the zoo. Empty: random ones.
    config.init_from = ""
    # Take the classifier from there as well; otherwise it starts fresh.
    config.init_head = False
    # Tensors by name, or by the start of it, that may be missing, unexpected or of another shape
    # there; they start fresh.
    config.init_ignore = ()
    # Where the run keeps its checkpoints, logs and recipe. Empty: output/<recipe>, with the
    # overridden config.model keys in the name, since a run of another model is another run.
    config.workdir = ""
    # Steps between two log lines.
    config.log_every = 20
    # Steps between two checkpoints within an epoch. 0: at the end of each epoch only.
    config.checkpoint_every = 0
    # Steps of the whole run that may be skipped because their loss, gradient or update is not
    # finite; one more stops the run. 0: stop at the first.
    config.max_bad_steps = 0
    # What the best checkpoint has most of in its validation: `top1`, or `mean_recall`, the mean
    # over classes of the share of their clips that is recognised, for classes of unequal sizes.
    config.best_metric = "top1"
    # Epochs without a better one after which the run ends. 0: it never ends early.
    config.patience = 0
    return config.lock()


def _model() -> ConfigDict:
    model = ConfigDict()
    # Image network that gets the shifts: a name of tsm_jax/models/backbones.py.
    model.backbone = "resnet50"
    # Channels of its stem; 64 is the paper's.
    model.width = 64
    # Classes K. 0: as many as there are class names (`data.labels`).
    model.num_classes = 400
    # Frames per clip T, one from each of T equal parts of the video.
    model.num_segments = 8
    # Direction of the first fold of channels: `past_first` (PaddleVideo), `future_first` (MIT,
    # mmaction2), `past_only` (no second fold: the network can follow a live stream), or `none` for
    # a network without shift (TSN).
    model.shift = "past_first"
    # Share of the channels that moves in one direction: `1/8` (the paper, MIT, mmaction2) or
    # `1/num_segments` (PaddleVideo; the same at 8 segments).
    model.shift_fraction = "1/8"
    # Shift in every n-th block of a stage: 1, or 2 as MIT does in ResNet-101 and -152.
    model.shift_every = 1
    # Dropout rate in front of the classifier.
    model.dropout = 0.5
    # Clips over which batch norm takes its statistics (16: the reference's batch per GPU), so that
    # a recipe means the same on any number of devices. 0: the whole batch.
    model.batch_norm_group = 16
    # Batch-norm layers that use and keep their running statistics in training, and whose scale and
    # bias are not trained: `none`, `all`, or `all_but_first` (MIT's "partial batch norm").
    model.frozen_batch_norm = "none"
    # The running variance is the `biased` one of the batches, or the `unbiased` one as in PyTorch.
    model.running_variance = "biased"
    return model


def _data() -> ConfigDict:
    data = ConfigDict()
    # What the lists name: `videos` (lines `path label`), `frames` (lines `folder num_frames
    # label`); `packed` (instead of lists, folders that `prepare pack` wrote); or `synthetic` (no
    # lists: random pixels to measure with).
    data.source = "videos"
    # The lists (or packed folders) of training and validation clips, and what is put before and
    # after each path of a list.
    data.train_list = "data/k400/train.list"
    data.val_list = "data/k400/val.list"
    data.prefix = ""
    data.suffix = ""
    # File name of frame i (from 1) in a folder of frames.
    data.frame_template = "img_{:05}.jpg"
    # Class names, one a line. Empty: a file labels.txt beside the training list if there is one.
    data.labels = ""
    # A table (CSV) with the columns `clip` (as in the list) and `group`, such as the recording that
    # a clip was cut from: clips of a group are alike, and `probe` keeps them in one part. Empty: a
    # file groups.csv beside the training list if there is one.
    data.groups = ""
    # Data set of our own to render at first use beside the training list: `moving_shapes`, or
    # empty for lists that exist.
    data.render = ""
    # How many training and validation clips it has.
    data.rendered_clips = (1200, 400)
    # Frames per second that the network sees: its T frames over the length of a typical clip. It is
    # stored with the weights, and live streams are followed at this rate. 0: measured from the
    # training videos; of folders of frames nobody knows it.
    data.frame_rate = 0.0
    # Side of the square that the network sees, pixels.
    data.crop_size = 224
    # Evaluation scales the short side of a frame to this before its centre is cropped, pixels.
    data.short_side = 256
    # Views that `evaluate` shows of a clip, by the name of a protocol (tsm_jax/data/protocols.py);
    # with many of them lower eval_batch_size. Empty: the one view of validation.
    data.protocol = ""
    # Frames of a training clip: one from each T-th of it (`uniform`, which as in the references
    # never draws a rest of up to T - 1 frames at its end; `whole`, which does, and that matters
    # where clips have few frames), or every 64/T-th of a window of 64 frames (`dense`). Validation
    # is uniform; data.protocol has the dense ones.
    data.sampling = "uniform"
    # Mirror half of the training clips.
    data.flip = True
    # A training clip's random crop: `multi_scale` (TSM), or `pptsm`, which scales to 4:3 before it
    # and cuts a random square out of it.
    data.crop = "multi_scale"
    # Sides of a training clip's random crop, of the short side. `(1,)` keeps most of a picture, for
    # fixed cameras and small differences.
    data.crop_scales = (1.0, 0.875, 0.75, 0.66)
    # Brightness, contrast and saturation of a training clip change by up to this share, alike in
    # all of its frames. 0: not at all.
    data.color_jitter = 0.0
    # Labels of mirrored clips: `swap` those of classes whose names differ in left and right only,
    # or in clockwise and counterclockwise (an error if one of two is missing), or `keep` all.
    data.flip_labels = "swap"
    # Reading threads per process. 0: one per core that the process may use.
    data.threads = 0
    # Worker processes that read. 0: threads of the main process, which is faster unless Python
    # itself is the bottleneck.
    data.workers = 0
    # An unreadable clip in training: `raise` stops the run, `skip` replaces it by another one.
    # Evaluation never replaces a clip.
    data.on_error = "raise"
    return data


def _optimizer() -> ConfigDict:
    optimizer = ConfigDict()
    # Peak learning rate of SGD.
    optimizer.learning_rate = 0.02
    # Batch size that it is meant for: with another one it is scaled in proportion (Goyal et al.
    # 2017; take a few warmup_epochs with it). 0: it is taken as it is.
    optimizer.reference_batch_size = 0
    # `step`: times decay_factor at each of boundaries. `cosine`: to zero at the last step.
    # `whole_cosine`: the same from the run's first step on, whose beginning the warm-up replaces.
    optimizer.schedule = "step"
    # Epochs after which the learning rate steps down.
    optimizer.boundaries = (20, 40)
    optimizer.decay_factor = 0.1
    # Epochs of linear warm-up, and where it starts, as a share of the peak.
    optimizer.warmup_epochs = 0.0
    optimizer.warmup_start = 0.0
    optimizer.momentum = 0.9
    # Look ahead along the velocity (Nesterov's momentum).
    optimizer.nesterov = False
    # L2 coefficient, added to the clipped gradient (not decoupled).
    optimizer.weight_decay = 1e-4
    # What decays: `weights` (of convolutions and classifier; never biases or batch norm) or `fc`
    # (the classifier's weight alone, as in PaddleVideo's UCF-101 recipes).
    optimizer.decay = "weights"
    # Largest global norm of the raw gradient. 0: no limit.
    optimizer.clip_norm = 20.0
    # Learning-rate multipliers of the classifier.
    optimizer.fc_weight_multiplier = 5.0
    optimizer.fc_bias_multiplier = 10.0
    # Parts of the network, by the beginning of their tensors' names, that keep the values they
    # start from, such as ("backbone.stem", "backbone.blocks.0"). No gradient is computed for them,
    # which saves time where they come first. Running statistics are those of batch norm
    # (`model.frozen_batch_norm`).
    optimizer.frozen = ()
    return optimizer


@dataclass(frozen=True)
class Plan:
    """What a recipe amounts to in steps.

    Attributes:
        steps_per_epoch: full batches in the training list; a rest is left out of that epoch (the
            shuffle decides which clips).
        total_steps: of the whole run.
        boundaries: steps at which the learning rate steps down.
        warmup_steps: of linear warm-up.
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
        raise UserError(
            f"config.epochs is {config.epochs}: with {steps_per_epoch} steps each these are"
            f" {total_steps} steps, which must be less than {2**31}"
        )
    boundaries = tuple(round(epoch * steps_per_epoch) for epoch in config.optimizer.boundaries)
    if config.optimizer.schedule == "step" and not all(
        earlier < later for earlier, later in itertools.pairwise((0, *boundaries))
    ):
        raise UserError(
            f"config.optimizer.boundaries is {tuple(config.optimizer.boundaries)}: with"
            f" {steps_per_epoch} steps in an epoch these are the steps {boundaries}, which must be"
            " different ones after the first"
        )
    return Plan(
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        boundaries=boundaries,
        warmup_steps=round(config.optimizer.warmup_epochs * steps_per_epoch),
    )


# The least and the greatest value of every number of a recipe; of a tuple, those of each number in
# it. The greatest ones also refuse, in one line and at once, what no memory holds.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "batch_size": (1, 10**6),
    "eval_batch_size": (0, 10**6),
    "accumulation_steps": (1, 10**6),
    "epochs": (1, 10**6),
    "class_balance": (0.0, 1.0),
    "label_smoothing": (0.0, 0.99),
    "mixup": (0.0, 100.0),
    "precise_batch_norm": (0, 10**6),
    "precise_batch_norm_batches": (1, 10**6),
    "refit_classifier": (0, 10**6),
    "log_every": (1, 2**31 - 1),
    "checkpoint_every": (0, 2**31 - 1),
    "max_bad_steps": (0, 2**31 - 2),
    "patience": (0, 10**6),
    "model.width": (8, 1024),
    "model.num_classes": (0, 10**6),
    "model.num_segments": (1, 1024),
    "model.dropout": (0.0, 0.99),
    "model.batch_norm_group": (0, 10**6),
    "data.rendered_clips": (1, 10**6),
    "data.frame_rate": (0.0, 1000.0),
    "data.crop_size": (32, 4096),
    "data.short_side": (32, 4096),
    "data.crop_scales": (0.05, 1.0),
    "data.color_jitter": (0.0, 1.0),
    "data.threads": (0, 1024),
    "data.workers": (0, 128),
    "optimizer.learning_rate": (1e-12, 1000.0),
    "optimizer.reference_batch_size": (0, 10**6),
    "optimizer.boundaries": (1e-6, 1e6),
    "optimizer.decay_factor": (1e-6, 1.0),
    "optimizer.warmup_epochs": (0.0, 1e6),
    "optimizer.warmup_start": (0.0, 1.0),
    "optimizer.momentum": (0.0, 0.9999),
    "optimizer.weight_decay": (0.0, 1.0),
    "optimizer.clip_norm": (0.0, 1e6),
    "optimizer.fc_weight_multiplier": (0.0, 1000.0),
    "optimizer.fc_bias_multiplier": (0.0, 1000.0),
}

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
    defaults = dict(flatten(default()))
    for key, value in flatten(config):
        _check_value(key, value, defaults[key])
    _check_data(config)
    _check_batches(config)
    _check_optimizer(config)


def _check_value(key: str, value: Any, like: Any) -> None:
    if type(value) is not type(like):  # ConfigDict takes None for anything, and True for 1
        raise UserError(f"config.{key} is {value!r}: it must be of type {type(like).__name__}")
    if isinstance(value, str) and _CONTROL_CODES.search(value):
        raise UserError(f"config.{key} is {value!r}: it must not contain control characters")
    if key in CHOICES and value not in CHOICES[key]:
        allowed = ", ".join(repr(choice) for choice in CHOICES[key])
        raise UserError(f"config.{key} is {value!r}: it must be one of {allowed}")
    if key in RANGES:
        _check_range(key, value)


def _check_range(key: str, value: Any) -> None:
    low, high = RANGES[key]
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise UserError(f"config.{key} is {value!r}: {number!r} is not a number")
        if not low <= number <= high:  # nan as well
            raise UserError(
                f"config.{key} is {value}: it must be at least {low:.10g} and at most {high:.10g}"
            )


def _check_data(config: ConfigDict) -> None:
    data, model = config.data, config.model
    if data.short_side < data.crop_size:
        raise UserError(
            f"config.data.short_side is {data.short_side}: it must be at least"
            f" config.data.crop_size ({data.crop_size})"
        )
    if len(data.rendered_clips) != 2 or not all(type(n) is int for n in data.rendered_clips):
        raise UserError(
            f"config.data.rendered_clips is {tuple(data.rendered_clips)}: it must be two whole"
            " numbers, of training and of validation clips"
        )
    if not _FRAME_TEMPLATE.fullmatch(data.frame_template):
        raise UserError(
            f"config.data.frame_template is {data.frame_template!r}: it must be a file name with"
            " one number in it, such as img_{:05}.jpg"
        )
    if not all(isinstance(name, str) and name for name in config.init_ignore):
        raise UserError(
            f"config.init_ignore is {tuple(config.init_ignore)}: it must hold names of tensors"
        )
    if data.sampling == "dense" and model.num_segments > 64:
        raise UserError(
            f"config.model.num_segments is {model.num_segments}: dense sampling takes at most one"
            " segment for each of its 64 frames; set config.data.sampling=uniform"
        )
    if (
        model.shift != "none"
        and model.shift_fraction == "1/num_segments"
        and model.num_segments < 2
    ):
        raise UserError(
            "config.model.num_segments is 1: one frame cannot be shifted by 1/num_segments of its"
            " channels; set config.model.shift=none"
        )


def _check_batches(config: ConfigDict) -> None:
    if config.batch_size % config.accumulation_steps:
        raise UserError(
            f"config.batch_size is {config.batch_size}: it must be a multiple of"
            f" config.accumulation_steps ({config.accumulation_steps})"
        )
    group, part = config.model.batch_norm_group, part_size(config)
    if config.precise_batch_norm and config.model.frozen_batch_norm != "none":
        raise UserError(
            f"config.precise_batch_norm is {config.precise_batch_norm} with"
            f" config.model.frozen_batch_norm={config.model.frozen_batch_norm}: frozen layers keep"
            " their statistics; set one of the two to 0 or none"
        )
    if group and part > group and part % group:
        key = "config.batch_size" + (
            " / config.accumulation_steps" if part < config.batch_size else ""
        )
        raise UserError(
            f"{key} is {part}: it must be a multiple of config.model.batch_norm_group ({group}), or"
            " set that to 0"
        )


def _check_optimizer(config: ConfigDict) -> None:
    optimizer = config.optimizer
    boundaries = tuple(optimizer.boundaries)
    if any(later <= earlier for earlier, later in itertools.pairwise(boundaries)):
        raise UserError(
            f"config.optimizer.boundaries is {boundaries}: each must be greater than the one before"
        )
    if optimizer.warmup_epochs > config.epochs:
        raise UserError(
            f"config.optimizer.warmup_epochs is {optimizer.warmup_epochs:g}: it must be at most"
            f" config.epochs ({config.epochs})"
        )
    if optimizer.schedule == "step" and boundaries and boundaries[0] < optimizer.warmup_epochs:
        raise UserError(
            f"config.optimizer.boundaries is {boundaries}: the first must not lie within"
            f" config.optimizer.warmup_epochs ({optimizer.warmup_epochs:g})"
        )
    if 0 < optimizer.clip_norm < _SMALLEST_CLIP_NORM:
        raise UserError(
            f"config.optimizer.clip_norm is {optimizer.clip_norm}: it must be 0, for no limit, or"
            f" at least {_SMALLEST_CLIP_NORM:g}"
        )
    frozen = tuple(optimizer.frozen)
    if not all(isinstance(part, str) and part for part in frozen):
        raise UserError(f"config.optimizer.frozen is {frozen}: it must hold names of tensors")
    if frozen and not config.init_from:
        raise UserError(
            f"config.optimizer.frozen is {frozen} without config.init_from: these parts would keep"
            " random values"
        )
    low, high = RANGES["optimizer.learning_rate"]
    if not low <= peak_learning_rate(config) <= high:
        raise UserError(
            f"config.optimizer.reference_batch_size is {optimizer.reference_batch_size}: it scales"
            f" the learning rate to {peak_learning_rate(config):g}, which must be at least {low:g}"
            f" and at most {high:g}"
        )


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
    known = dict(flatten(config))
    if not isinstance(values, dict):
        raise UserError("the saved recipe is damaged: it is not a dictionary")
    given = dict(flatten(ConfigDict(values)))
    given = upgraded(given, given.pop("version", 1), UPGRADES, "the saved recipe")
    if known.keys() != given.keys():
        names = ", ".join(sorted(known.keys() ^ given.keys()))
        raise UserError(
            f"the saved recipe has other keys than one of its version: it differs in {names}; use"
            " the tsm_jax that wrote it, or train again"
        )
    for key, value in given.items():
        # The network's own values may come from anywhere; those of the optimizer are not used
        # unless the run goes on, with a recipe that is the same and has been validated.
        if key.startswith("model."):
            _check_value(key, value, known[key])
        *parents, last = key.split(".")
        try:
            (get(config, ".".join(parents)) if parents else config)[last] = value
        except (TypeError, ValueError):
            kind = type(known[key]).__name__
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
