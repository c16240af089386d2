"""ResNet-18/34/50/101/152 and ResNet-vd with a temporal shift at the input of the residual branch.

The shift is applied to the input of the first convolution of a residual block; the shortcut reads
the unshifted tensor ("residual TSM" in the paper). The stride is in the 3x3 convolution.

He et al., "Deep Residual Learning for Image Recognition", 2015, table 1; He et al., "Bag of Tricks
for Image Classification with Convolutional Neural Networks", 2018, figure 2 (vd: ResNet-C's stem
and ResNet-D's shortcut).
"""

from __future__ import annotations

from functools import partial

import jax
from flax import nnx

from tsm_jax.models.batch_norm import Activation, activate
from tsm_jax.models.layers import ConvNorm, runner
from tsm_jax.models.pooling import average_pool_2x2, max_pool_3x3_stride_2
from tsm_jax.models.shift import Shift, unshifted


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions: ResNet-18 and -34."""

    expansion = 1

    def __init__(self, in_features, width, stride, *, shift, conv_norm, vd):
        assert not vd  # ResNet-vd's shortcuts differ here, and PP-TSM never uses these depths
        out_features = width * self.expansion
        self.shift = shift
        self.conv1 = conv_norm(in_features, width, 3, stride=stride)
        self.conv2 = conv_norm(width, out_features, 3)
        self.shortcut = _shortcut(in_features, out_features, stride, conv_norm)

    def __call__(self, x: jax.Array, *, groups: int | None) -> jax.Array:
        y = self.conv1(self.shift(x), groups=groups, activation="relu")
        y = self.conv2(y, groups=groups)
        return nnx.relu(y + _apply_shortcut(self.shortcut, x, groups))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride), 1x1: ResNet-50, -101 and -152."""

    expansion = 4

    def __init__(self, in_features, width, stride, *, shift, conv_norm, vd):
        out_features = width * self.expansion
        self.shift = shift
        self.conv1 = conv_norm(in_features, width, 1)
        self.conv2 = conv_norm(width, width, 3, stride=stride)
        self.conv3 = conv_norm(width, out_features, 1)
        self.pooled = vd and stride == 2
        if self.pooled:
            self.shortcut = conv_norm(in_features, out_features, 1)
        else:
            self.shortcut = _shortcut(in_features, out_features, stride, conv_norm)
        self.activation: Activation = "leaky_relu" if vd else "relu"

    def __call__(self, x: jax.Array, *, groups: int | None) -> jax.Array:
        y = self.conv1(self.shift(x), groups=groups, activation=self.activation)
        y = self.conv2(y, groups=groups, activation=self.activation)
        y = self.conv3(y, groups=groups)
        x = average_pool_2x2(x) if self.pooled else x
        return activate(y + _apply_shortcut(self.shortcut, x, groups), self.activation)


def _shortcut(in_features, out_features, stride, conv_norm) -> ConvNorm | None:
    if stride == 1 and in_features == out_features:
        return None
    return conv_norm(in_features, out_features, 1, stride=stride)


def _apply_shortcut(shortcut: ConvNorm | None, x: jax.Array, groups: int | None) -> jax.Array:
    return x if shortcut is None else shortcut(x, groups=groups)


_BLOCKS_PER_STAGE = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nnx.Module):
    """Maps images `[M, H, W, 3]` to features `[M, H/32, W/32, features]`.

    Args (those not listed are described in `architecture.Backbone`):
        depth: 18, 34, 50, 101 or 152.
        vd: PP-TSM's variant, for depths of at least 50: a stem of three 3x3 convolutions, average
            pooling instead of a stride in the shortcuts of later stages, and leaky ReLU.
        shift_every: PaddleVideo uses 1 at every depth; MIT and mmaction2 use 2 for ResNet-101 and
            -152.
    """

    def __init__(
        self,
        depth: int,
        *,
        vd: bool = False,
        width: int = 64,
        shift: Shift,
        shift_every: int = 1,
        remat: bool = False,
        dtype=None,
    ):
        block, blocks_per_stage = _BLOCKS_PER_STAGE[depth]
        conv_norm = partial(ConvNorm, dtype=dtype)
        self.remat = remat
        self.activation: Activation = "leaky_relu" if vd else "relu"
        if vd:
            half = width // 2
            convs = [conv_norm(3, half, 3, stride=2), conv_norm(half, half, 3)]
            self.stem = nnx.List([*convs, conv_norm(half, width, 3)])
        else:
            self.stem = conv_norm(3, width, 7, stride=2)
        self.stages = nnx.List()
        features = width
        for stage, num_blocks in enumerate(blocks_per_stage):
            blocks = nnx.List()
            for index in range(num_blocks):
                blocks.append(
                    block(
                        features,
                        width * 2**stage,
                        stride=2 if stage > 0 and index == 0 else 1,
                        shift=shift if index % shift_every == 0 else unshifted,
                        conv_norm=conv_norm,
                        vd=vd,
                    )
                )
                features = width * 2**stage * block.expansion
            self.stages.append(blocks)
        self.features = features

    def __call__(self, images: jax.Array, *, groups: int | None) -> jax.Array:
        x = images
        for conv in self.stem if isinstance(self.stem, nnx.List) else [self.stem]:
            x = conv(x, groups=groups, activation=self.activation)
        x = max_pool_3x3_stride_2(x)
        run = runner(self.remat)
        for blocks in self.stages:
            for block in blocks:
                x = run(block, x, groups)
        return x
