"""The backbones by name: the one table to add a backbone to.

A backbone turns images `[M, H, W, 3]` into `features` channels by `__call__(images, *, groups)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple


class Backbone(NamedTuple):
    """A backbone's name in the literature, and its constructor.

    The constructor takes `width`, `shift`, `shift_every`, `remat` and `dtype` (see `ResNet`), and
    with `whole_clip` also `num_segments`: each frame then needs all frames of its clip.
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
