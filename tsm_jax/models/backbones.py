"""The backbones by name: the one table to add a backbone to.

A backbone turns images `[M, H, W, 3]` into `features` channels by `__call__(images, *, groups)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple


class Backbone(NamedTuple):
    """A backbone's name in the literature, and its constructor.

    The constructor takes `width`, `shift`, `shift_every`, `remat` and `dtype` (see `ResNet`).
    """

    title: str
    build: Callable[..., Any]


def _resnet(depth: int, **arguments: Any) -> Any:
    # Late, as for every backbone: the names are needed where neither jax nor flax is.
    from tsm_jax.models.resnet import ResNet

    return ResNet(depth, **arguments)


def _mobilenet_v2(**arguments: Any) -> Any:
    from tsm_jax.models.mobilenet_v2 import MobileNetV2

    return MobileNetV2(**arguments)


BACKBONES = {
    **{
        f"resnet{depth}": Backbone(f"ResNet-{depth}", partial(_resnet, depth))
        for depth in (18, 34, 50, 101, 152)
    },
    "mobilenet_v2": Backbone("MobileNetV2", _mobilenet_v2),
    "mobilenet_v2_paddle": Backbone("MobileNetV2", partial(_mobilenet_v2, expand_first=True)),
}
