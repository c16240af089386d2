"""What is needed besides the weights to rebuild a network, and the table of backbones.

This module imports neither jax nor flax: reading the description of a model must not need them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from tsm_jax.errors import UserError
from tsm_jax.files import between, check_fields, one_of


class Backbone(NamedTuple):
    """A backbone.

    The constructor takes these keyword arguments:

        width: channels of the stem; 64 is the value of the paper.
        shift: function applied to the input of a residual branch.
        shift_every: apply it in every n-th block of a stage, starting with the first.
        remat: recompute the intermediate values of a block in the backward pass instead of
            keeping them.
        dtype: dtype of convolutions and activations.
        num_segments: T; only if `whole_clip` is true.

    It returns a module with the attribute `features`, the number of output channels, whose
    `__call__(images, *, groups)` maps images `[M, H, W, 3]` to features.

    Attributes:
        title: its name in the literature.
        build: the constructor.
        whole_clip: whether the features of a frame depend on all frames of its clip.
    """

    title: str
    build: Callable[..., Any]
    whole_clip: bool = False


def _constructor(module: str, name: str, **arguments: Any) -> Callable[..., Any]:
    """Returns a constructor that imports its module when called; see the top of this file."""

    def build(**others: Any) -> Any:
        return getattr(import_module(f"tsm_jax.models.{module}"), name)(**arguments, **others)

    return build


_resnet = partial(_constructor, "resnet", "ResNet")
_mobilenet_v2 = partial(_constructor, "mobilenet_v2", "MobileNetV2")
_pplcnet_v2 = partial(_constructor, "pplcnet_v2", "PPLCNetV2")

# To add a backbone, add it to this table.
BACKBONES = {
    **{
        f"resnet{depth}": Backbone(f"ResNet-{depth}", _resnet(depth=depth))
        for depth in (18, 34, 50, 101, 152)
    },
    "resnet50_vd": Backbone("ResNet-50-vd", _resnet(depth=50, vd=True)),
    "resnet101_vd": Backbone("ResNet-101-vd", _resnet(depth=101, vd=True)),
    "mobilenet_v2": Backbone("MobileNetV2", _mobilenet_v2()),
    "mobilenet_v2_paddle": Backbone("MobileNetV2 (Paddle's)", _mobilenet_v2(expand_first=True)),
    "pplcnet_v2": Backbone("PP-LCNetV2", _pplcnet_v2()),
    "pplcnet_v2_attention": Backbone(
        "PP-LCNetV2 with temporal attention", _pplcnet_v2(attention=True), whole_clip=True
    ),
}

# Names of the tensors of the classifier; the same for every backbone.
HEAD = "head."
CLASSIFIER = "head.fc.kernel"
CLASSIFIER_BIAS = "head.fc.bias"

SHIFTS = ("past_first", "future_first", "past_only", "none")
SHIFT_FRACTIONS = ("1/8", "1/num_segments")
SHIFT_EVERY = (1, 2)

# Upper limits: far above any published network, far below what would exhaust the memory.
MAX_WIDTH = 1024
MAX_CLASSES = 100_000
MAX_SEGMENTS = 1024


@dataclass(frozen=True)
class Architecture:
    """The architecture of a network; its attributes are described in `config.model`.

    It is stored with the weights, because the shapes of the tensors do not determine it: with a
    wrong `shift`, `shift_fraction`, `shift_every` or `num_segments` they would load without an
    error and give wrong results.

    Raises:
        UserError: a value has the wrong type, is not one of the choices or is out of range; or
            `num_segments` or `shift` does not suit the other values.
    """

    backbone: str = field(metadata=one_of(BACKBONES))
    num_classes: int = field(metadata=between(1, MAX_CLASSES))
    num_segments: int = field(metadata=between(1, MAX_SEGMENTS))
    width: int = field(default=64, metadata=between(8, MAX_WIDTH))
    shift: str = field(default="past_first", metadata=one_of(SHIFTS))
    shift_fraction: str = field(default="1/8", metadata=one_of(SHIFT_FRACTIONS))
    shift_every: int = field(default=1, metadata=one_of(SHIFT_EVERY))

    def __post_init__(self):
        check_fields(self)
        if self.num_segments == 1 and self.shift != "none" and self.shift_fraction != "1/8":
            raise UserError(
                "architecture.num_segments is 1: a shift by 1/num_segments of the channels needs at"
                " least 2"
            )

        if BACKBONES[self.backbone].whole_clip and self.shift == "past_only":
            raise UserError(
                f"architecture.shift is past_only, but {self.backbone} needs all frames of a clip"
                " for each frame; choose another backbone"
            )

    def __str__(self) -> str:
        return f"TSM-{BACKBONES[self.backbone].title}"
