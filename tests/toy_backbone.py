"""A backbone that `tsm_jax` does not know: an inverted residual with a shift.

It compiles in a quarter of the time of the smallest ResNet, so tests that do not depend on the
network use it.
"""

from __future__ import annotations

import jax
from flax import nnx

from tsm_jax.models.architecture import BACKBONES, Backbone
from tsm_jax.models.layers import ConvNorm


class ToyBackbone(nnx.Module):
    def __init__(self, *, width, shift, shift_every, remat, dtype):
        self.shift = shift
        self.stem = ConvNorm(3, width, 3, stride=2, dtype=dtype)
        self.expand = ConvNorm(width, 2 * width, 1, dtype=dtype)
        self.depthwise = ConvNorm(2 * width, 2 * width, 3, feature_groups=2 * width, dtype=dtype)
        self.project = ConvNorm(2 * width, width, 1, dtype=dtype)
        self.downsample = ConvNorm(width, 24, 1, stride=2, dtype=dtype)
        self.features = 24

    def __call__(self, images, *, groups):
        x = jax.nn.relu6(self.stem(images, groups=groups))
        y = jax.nn.relu6(self.expand(self.shift(x), groups=groups))
        y = jax.nn.relu6(self.depthwise(y, groups=groups))
        x = x + self.project(y, groups=groups)
        return nnx.avg_pool(self.downsample(x, groups=groups), (2, 2), (2, 2))


BACKBONES["toy"] = Backbone("Toy", ToyBackbone)
