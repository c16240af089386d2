"""MobileNetV2 with a temporal shift at the input of the residual branch.

A block widens its input with a 1x1 convolution (`expand`), filters each channel separately
(`depthwise`) and narrows the result without an activation (`project`). In blocks with a shortcut,
the shift is applied to the input of `expand`; the shortcut reads the unshifted tensor.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, table 2.
"""

from __future__ import annotations

from functools import partial

import jax
from flax import nnx

from tsm_jax.models.layers import ConvNorm, runner
from tsm_jax.models.shift import Shift, only_in_every_block, unshifted

# Features of the last convolution; not reduced in narrower networks.
LAST = 1280

_STEM = 32
_STAGES = (  # expansion, features, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nnx.Module):
    """1x1 expansion (optional), 3x3 depthwise convolution with the stride, 1x1 projection."""

    def __init__(self, in_features, out_features, stride, *, expansion, expand, shift, conv_norm):
        inner = in_features * expansion
        self.residual = stride == 1 and in_features == out_features
        self.shift = shift if self.residual and expand else unshifted
        self.expand = conv_norm(in_features, inner, 1) if expand else None
        self.depthwise = conv_norm(inner, inner, 3, stride=stride, feature_groups=inner)
        self.project = conv_norm(inner, out_features, 1)

    def __call__(self, x: jax.Array, *, groups: int | None) -> jax.Array:
        y = self.shift(x)
        if self.expand is not None:
            y = self.expand(y, groups=groups, activation="relu6")
        y = self.depthwise(y, groups=groups, activation="relu6")
        y = self.project(y, groups=groups)
        return x + y if self.residual else y


class MobileNetV2(nnx.Module):
    """Maps images `[M, H, W, 3]` to features `[M, H/32, W/32, 1280]`.

    Args (those not listed are described in `architecture.Backbone`):
        expand_first: give the first block an `expand` although it does not widen its input, as
            PaddleVideo does; MIT, mmaction2 and torchvision do not.
        width: 64 is the network of the paper; other values scale the channels of every layer
            proportionally (`width / 64` is the paper's width multiplier), to multiples of 8. A
            narrower network keeps the 1280 output features.
        shift_every: must be 1; no other rule is known for this network.

    Raises:
        UserError: `shift_every` is not 1.
    """

    def __init__(
        self,
        *,
        expand_first: bool = False,
        width: int = 64,
        shift: Shift,
        shift_every: int = 1,
        remat: bool = False,
        dtype=None,
    ):
        only_in_every_block(shift_every, "MobileNetV2")
        conv_norm = partial(ConvNorm, fan="out", dtype=dtype)
        self.remat = remat
        features = _scaled(_STEM, width)
        self.stem = conv_norm(3, features, 3, stride=2)
        self.blocks = nnx.List()
        for expansion, stage_features, blocks, stride in _STAGES:
            for index in range(blocks):
                block = InvertedResidual(
                    features,
                    _scaled(stage_features, width),
                    stride if index == 0 else 1,
                    expansion=expansion,
                    expand=expand_first or expansion > 1,
                    shift=shift,
                    conv_norm=conv_norm,
                )
                self.blocks.append(block)
                features = _scaled(stage_features, width)
        self.features = max(LAST, _scaled(LAST, width))
        self.last = conv_norm(features, self.features, 1)

    def __call__(self, images: jax.Array, *, groups: int | None) -> jax.Array:
        x = self.stem(images, groups=groups, activation="relu6")
        run = runner(self.remat)
        for block in self.blocks:
            x = run(block, x, groups)
        return self.last(x, groups=groups, activation="relu6")


def _scaled(features: int, width: int) -> int:
    """Scales features and rounds to the nearest multiple of 8 that loses at most a tenth."""
    exact = features * width / 64
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded
