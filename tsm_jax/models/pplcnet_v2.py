"""PP-LCNetV2 as PP-TSMv2 uses it: depthwise separable convolutions and a single temporal shift.

The shift, optionally preceded by an attention over the frames, is between the second and the third
stage.

References: PaddleVideo's paddlevideo/modeling/backbones/pptsm_v2.py; PaddleClas's pp_lcnet_v2.py
(the "base" network).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsm_jax.models.depthwise import depthwise_conv
from tsm_jax.models.layers import Bias, Conv, ConvNorm, linear, runner
from tsm_jax.models.shift import Shift, only_in_every_block

# Features of the last convolution; not reduced in narrower networks.
LAST = 1280

# Before the classifier, Paddle's dropout does not rescale the kept features in training, but scales
# all features in inference. With the features multiplied by this factor, ordinary dropout of the
# same rate is equivalent.
_KEPT = 0.8


class _Stage(NamedTuple):
    features: int
    blocks: int
    branches: bool = False  # several kernels in parallel instead of a single 3x3 one
    excite: bool = False
    split: bool = False  # two pointwise convolutions with half of the features in between
    residual: bool = False  # applies to blocks with stride 1


_STEM = 32
_STAGES = (
    _Stage(128, 2),
    _Stage(256, 2),
    _Stage(512, 6, branches=True, excite=True, split=True),
    _Stage(1024, 2, branches=True, residual=True),
)
_SHIFTED = 2  # index of the stage after the shift


class DepthwiseBranches(nnx.Module):
    """The sum of depthwise convolutions of several kernel sizes, each with its batch norm.

    Once folded, it is computed as a single convolution with the sum of the kernels.
    """

    def __init__(self, features, sizes, stride, *, conv_norm):
        self.stride = stride
        self.branches = nnx.List(
            conv_norm(features, features, size, stride=stride, feature_groups=features)
            for size in sizes
        )

    def __call__(self, x: jax.Array, *, groups: int | None) -> jax.Array:
        first, *others = self.branches
        if isinstance(first.norm, Bias):
            size = len(first.conv.kernel[...])
            kernel: Any = sum(_grown(branch.conv.kernel[...], size) for branch in self.branches)
            bias: Any = sum(branch.norm.bias[...] for branch in self.branches)
            return depthwise_conv(x, kernel, self.stride) + bias
        y = first(x, groups=groups)
        for branch in others:
            y = y + branch(x, groups=groups)
        return y


def _grown(kernel: jax.Array, size: int) -> np.ndarray:
    """Pads a kernel with zeros, in NumPy, so that the sum is a constant of the exported graph."""
    rim = (size - len(kernel)) // 2
    return np.pad(np.asarray(kernel), ((rim, rim), (rim, rim), (0, 0), (0, 0)))


class SqueezeExcite(nnx.Module):
    """Scales each channel by a factor computed from the averages of all channels."""

    def __init__(self, features):
        self.reduce = linear(features, features // 4, math.sqrt(2 / features))
        self.expand = linear(features // 4, features, math.sqrt(8 / features))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2))  # [M, C]
        shares = nnx.sigmoid(self.expand(nnx.relu(self.reduce(y))))
        return x * shares[:, None, None, :].astype(x.dtype)


class Block(nnx.Module):
    """A depthwise and a pointwise convolution."""

    def __init__(self, in_features, out_features, stride, stage, *, conv_norm):
        self.residual = stage.residual and stride == 1 and in_features == out_features
        if stage.branches:
            sizes = (5, 3, 1) if stride == 1 else (5, 3)
            self.depthwise = DepthwiseBranches(in_features, sizes, stride, conv_norm=conv_norm)
        else:
            self.depthwise = conv_norm(
                in_features, in_features, 3, stride=stride, feature_groups=in_features
            )
        self.excite = SqueezeExcite(in_features) if stage.excite else None
        inner = out_features // 2
        self.reduce = conv_norm(in_features, inner, 1) if stage.split else None
        self.pointwise = conv_norm(inner if stage.split else in_features, out_features, 1)

    def __call__(self, x: jax.Array, *, groups: int | None) -> jax.Array:
        y = nnx.relu(self.depthwise(x, groups=groups))
        if self.excite is not None:
            y = self.excite(y)
        if self.reduce is not None:
            y = self.reduce(y, groups=groups, activation="relu")
        y = self.pointwise(y, groups=groups, activation="relu")
        return x + y if self.residual else y


class TemporalAttention(nnx.Module):
    """Scales each frame by a factor computed from the averages of all frames of its clip."""

    def __init__(self, num_segments):
        self.num_segments = num_segments
        self.fc = linear(num_segments, num_segments, math.sqrt(1 / num_segments))

    def __call__(self, x: jax.Array) -> jax.Array:
        means = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2, 3))
        shares = nnx.sigmoid(self.fc(means.reshape(-1, self.num_segments)))
        return x * shares.reshape(-1, 1, 1, 1).astype(x.dtype)


class PPLCNetV2(nnx.Module):
    """Maps images `[M, H, W, 3]` to features `[M, 1, 1, 1280]`.

    The last convolution follows the pooling.

    Args (those not listed are described in `architecture.Backbone`):
        attention: apply an attention over the frames of a clip before the shift.
        num_segments: frames of a clip; only needed for the attention.
        width: 64 is the network of PP-TSMv2; other values scale the channels of every layer
            proportionally, to multiples of 8. A narrower network keeps the 1280 output features.
        shift: function applied to the input of the third stage.
        shift_every: must be 1; no other rule is known for this network.

    Raises:
        UserError: `shift_every` is not 1.
    """

    def __init__(
        self,
        *,
        attention: bool = False,
        num_segments: int = 0,
        width: int = 64,
        shift: Shift,
        shift_every: int = 1,
        remat: bool = False,
        dtype=None,
    ):
        only_in_every_block(shift_every, "PP-LCNetV2")
        conv_norm = partial(ConvNorm, dtype=dtype)
        self.shift = shift
        self.remat = remat
        narrow, before = (_scaled(n, width) for n in (_STEM, 2 * _STEM))
        first = Block(narrow, before, 1, _Stage(2 * _STEM, 1), conv_norm=conv_norm)
        self.stem: Any = nnx.List([conv_norm(3, narrow, 3, stride=2), first])
        self.attention = TemporalAttention(num_segments) if attention else None
        self.stages = nnx.List()
        for stage in _STAGES:
            blocks, after = nnx.List(), _scaled(stage.features, width)
            for stride in (2, *[1] * (stage.blocks - 1)):
                blocks.append(Block(before, after, stride, stage, conv_norm=conv_norm))
                before = after
            self.stages.append(blocks)
        self.features = max(LAST, _scaled(LAST, width))
        self.last = Conv(before, self.features, 1, dtype=dtype)

    def __call__(self, images: jax.Array, *, groups: int | None) -> jax.Array:
        x = self.stem[0](images, groups=groups, activation="relu")
        run = runner(self.remat)
        x = run(self.stem[1], x, groups)
        for number, blocks in enumerate(self.stages):
            if number == _SHIFTED:
                x = x if self.attention is None else self.attention(x)
                x = self.shift(x)
            for block in blocks:
                x = run(block, x, groups)
        pooled = x.astype(jnp.promote_types(x.dtype, jnp.float32)).mean((1, 2), keepdims=True)
        return nnx.relu(self.last(pooled.astype(x.dtype))) * _KEPT


def _scaled(features: int, width: int) -> int:
    return max(8, round(features * width / 64 / 8) * 8)
