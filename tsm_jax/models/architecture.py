"""What has to be known, besides its weights, to rebuild a network; the backbones by name.

All of it without jax and flax, which not everybody has who reads a model's description.
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
    """A backbone's name in the literature, and its constructor.

    The constructor gives a module that turns images `[M, H, W, 3]` into `features` channels by
    `__call__(images, *, groups)`. It takes

        width: channels of the stem; 64 is the paper's.
        shift: what to apply in front of a residual branch.
        shift_every: in every n-th block of a stage, the first one always.
        remat: compute the inside of a block again in the backward pass instead of keeping it.
        dtype: of convolutions and activations.

    and with `whole_clip` also `num_segments`: each frame then needs all frames of its clip.
    """

    title: str
    build: Callable[..., Any]
    whole_clip: bool = False


def _constructor(module: str, name: str, **arguments: Any) -> Callable[..., Any]:
    """Imports late: the names are needed where neither jax nor flax is."""

    def build(**others: Any) -> Any:
        return getattr(import_module(f"tsm_jax.models.{module}"), name)(**arguments, **others)

    return build


_resnet = partial(_constructor, "resnet", "ResNet")
_mobilenet_v2 = partial(_constructor, "mobilenet_v2", "MobileNetV2")
_pplcnet_v2 = partial(_constructor, "pplcnet_v2", "PPLCNetV2")

# The one table to add a backbone to.
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

# Names of the classifier's tensors, the same for every backbone.
HEAD = "head."
CLASSIFIER = "head.fc.kernel"
CLASSIFIER_BIAS = "head.fc.bias"

SHIFTS = ("past_first", "future_first", "past_only", "none")
SHIFT_FRACTIONS = ("1/8", "1/num_segments")
SHIFT_EVERY = (1, 2)

# Largest sizes: far above any published network, far below what fills a machine's memory.
MAX_WIDTH = 1024
MAX_CLASSES = 100_000
MAX_SEGMENTS = 1024


@dataclass(frozen=True)
class Architecture:
    """Stored with weights, because the shapes of tensors do not tell it all.

    Attributes as in `config.model`: a wrong `shift`, `shift_fraction`, `shift_every` or
    `num_segments` would load without an error and answer something else.

    Raises:
        UserError: a value is of another type, not one of its choices or out of range.
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
                "architecture.num_segments is 1: one frame cannot be shifted by 1/num_segments of"
                " its channels"
            )

        if BACKBONES[self.backbone].whole_clip and self.shift == "past_only":
            raise UserError(
                f"architecture.shift is past_only: {self.backbone} needs all frames of a clip for"
                " each; take another backbone"
            )

    def __str__(self) -> str:
        return f"TSM-{BACKBONES[self.backbone].title}"
