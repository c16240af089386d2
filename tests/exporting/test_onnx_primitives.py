"""Compares each primitive, merged constant and changed layout with jax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from tsm_jax.errors import UserError

pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from tsm_jax.exporting.onnx_graph import build_onnx  # noqa: E402


@dataclass(eq=False)
class Computation:
    """A program that applies a function to frames of 6x8 pixels, `[N*T, H, W, C]` with T = 2."""

    function: Any

    outputs = ("logits", "features")

    @property
    def inputs(self):
        (clips,) = jax.export.symbolic_shape("N")
        return {"video": jax.ShapeDtypeStruct((clips, 2, 6, 8, 3), jnp.uint8)}

    def __call__(self, video):
        x = video.reshape(-1, *video.shape[2:]).astype(jnp.float32) / 64 - 2
        y = self.function(x)
        return y.reshape(y.shape[0], -1), video.astype(jnp.float32)


def weights(*shape):
    return np.random.default_rng(shape).normal(0, 1, shape).astype(np.float32)


def conv(x, features, size=3, stride=1, padding=1, groups=1):
    return lax.conv_general_dilated(
        x,
        weights(size, size, x.shape[-1] // groups, features),
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def unequal_average(x):
    """Averages windows; the last ones extend past the edge and count only pixels inside."""
    padding = ((0, 0), (0, 1), (0, 1), (0, 0))
    add = (0.0, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    counts = lax.reduce_window(np.ones((1, *x.shape[1:3], 1), np.float32), *add)
    return lax.reduce_window(x, *add) / counts


def squeeze_and_excite(x):
    x = conv(x, 8)
    gate = jax.nn.relu(x.mean((1, 2), keepdims=True) @ weights(8, 4))
    return x * jax.nn.hard_sigmoid(gate @ weights(4, 8) + weights(8))


def two_readers(x):
    """If a constant is merged for one reader, the other must still get the original tensor."""
    y = conv(x, 4)
    low = jnp.maximum(y, -0.5)
    return (y + weights(4)) * (y * 3) + jnp.minimum(low, 0.5) * low + y


def slice_of_slice(x):
    part = lax.slice(x, (0, 1, 2, 1), (x.shape[0], 6, 7, 3))
    return lax.slice(part, (0, 1, 0, 1), (x.shape[0], 5, 5, 2), (1, 2, 3, 1))


def broadcast_part(x):
    return jnp.split(jnp.broadcast_to(conv(x, 1), x.shape), 3, -1)[2]


def in_time(x):
    clips = conv(x, 4).reshape(-1, 2, 6, 8, 4)
    return lax.index_in_dim(clips, 1, 1, keepdims=False) - clips.mean(1) + clips.max(1)


def every_second(first, step=2):
    """A 1x1 convolution of some rows, which becomes a stride only if row 0 is one of them."""

    def function(x):
        y = conv(x, 4)
        part = lax.slice(y, (0, first, 0, 0), y.shape, (1, step, 1, 1))
        return jnp.dot(part, weights(4, 5))

    return function


COMPUTATIONS = {
    "arithmetic": lambda x: -x * 2 + 3 / (jnp.abs(1.0) + lax.exp(x)) - jnp.tanh(x),
    "a factor before padding": lambda x: conv((x + 1) * weights(3), 4),
    "a factor before depthwise": lambda x: conv(conv(x, 6) * weights(6), 6, groups=6),
    "a factor of rows": lambda x: conv(x * weights(6, 1, 1), 4),
    "offset after factor": lambda x: (conv(x, 4) * weights(4) + weights(4)) * 0.5 - 1,
    "offset of pixels": lambda x: conv(x, 4) + weights(6, 8, 4),
    "a zero factor": lambda x: conv(x * np.float32([1, 0, 2]) + 1, 4),
    "groups": lambda x: conv(conv(x, 6), 8, groups=2),
    "strides": lambda x: conv(x, 4, size=5, stride=2, padding=2),
    "relu6": lambda x: jax.nn.relu6(conv(x, 4)),
    "clip": lambda x: jnp.clip(conv(x, 4), -0.5, 0.7),
    "hard swish": lambda x: jax.nn.hard_swish(conv(x, 4)),
    "swish": lambda x: jax.nn.silu(conv(x, 4)),
    "leaky relu": lambda x: jax.nn.leaky_relu(conv(x, 4)),
    "clamp": lambda x: lax.clamp(-0.5, jnp.tanh(x), 0.7),
    "max of two": lambda x: jnp.maximum(conv(x, 4), jnp.minimum(conv(x, 4, 1, 1, 0), 1)),
    "max pool": lambda x: nnx.max_pool(conv(x, 4), (3, 3), (2, 2), ((1, 1), (1, 1))),
    "average pool": lambda x: nnx.avg_pool(conv(x, 4), (2, 3), (2, 1), ((0, 0), (1, 1))),
    "average pool, ceil mode": unequal_average,
    "sum": lambda x: conv(x, 4).sum((1, 2)),
    "mean of channels": lambda x: conv(x, 4).mean(-1),
    "mean of rows": lambda x: conv(x, 4).mean(1),
    "sum of a broadcast tensor": lambda x: (conv(x, 1) + jnp.zeros((1, 1, 1, 4))).sum(-1),
    "part of a broadcast tensor": lambda x: broadcast_part(x) + x,
    "squeeze and excite": squeeze_and_excite,
    "two readers": two_readers,
    "in time": in_time,
    "concatenation": lambda x: jnp.concatenate([conv(x, 4), x, conv(x, 2)], -1),
    "concatenation of rows": lambda x: jnp.concatenate([conv(x, 3), x], 1),
    "padding": lambda x: lax.pad(conv(x, 4), 1.5, [(0, 0, 0), (1, -2, 0), (-1, 2, 0), (2, 0, 0)]),
    "a slice of a slice": slice_of_slice,
    "1x1 with a stride": every_second(0),
    "1x1 with a stride that is no divisor": every_second(0, 4),
    "1x1 of every second from the first": every_second(1),
    "flattened": lambda x: conv(x, 4).reshape(x.shape[0], -1) @ weights(6 * 8 * 4, 5),
    "comparison": lambda x: jnp.where(conv(x, 3) < x, x, 0),
}  # fmt: skip


@pytest.mark.parametrize("function", COMPUTATIONS.values(), ids=COMPUTATIONS)
def test_computes_the_same_as_jax(function):
    computation = Computation(function)
    video = np.random.default_rng(0).integers(0, 256, (3, 2, 6, 8, 3), np.uint8)
    session = onnxruntime.InferenceSession(build_onnx(computation).SerializeToString())
    found, pixels = session.run(["logits", "features"], {"video": video})
    expected = np.asarray(jax.jit(computation)(video)[0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * abs(expected).max())
    np.testing.assert_array_equal(pixels.transpose(0, 1, 3, 4, 2), video)


@pytest.mark.parametrize("name", ["hard swish", "swish", "two readers"])
def test_no_convolution_is_computed_twice(name):
    kinds = [node.op_type for node in build_onnx(Computation(COMPUTATIONS[name])).graph.node]
    assert kinds.count("Conv") == 1


REFUSED = {
    "rsqrt": lambda x: lax.rsqrt(x),
    "transpose": lambda x: jnp.transpose(conv(x, 4), (0, 3, 2, 1)),
    "dot_general": lambda x: jnp.einsum("bhwc,bhwd->bhcd", x, x),
    "sort": lambda x: jnp.sort(conv(x, 4), -1),
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "conv_general_dilated": lambda x: lax.conv(x, weights(3, 6, 1, 1), (1, 1), "SAME"),
    "pad": lambda x: lax.pad(x, 0.0, [(1, 0, 0), *[(0, 0, 0)] * 3]),
    "reduce_window_max": lambda x: nnx.max_pool(x, (3, 3), (2, 2)).max() + lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 1, 1, 3), (1, 1, 1, 1), "VALID"),
    "convert_element_type": lambda x: x.astype(jnp.bfloat16),
    "gather": lambda x: x[:, ::2],  # with a symbolic number of clips
    "reduce_sum": lambda x: (x > 0).astype(jnp.int32).sum((1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_primitives_are_refused_by_name(name):
    with pytest.raises(UserError, match=f"cannot be written as ONNX: .*'{name}'"):
        build_onnx(Computation(REFUSED[name]))


def test_a_constant_per_clip_is_refused():
    with pytest.raises(UserError, match="it repeats a tensor for every clip"):
        build_onnx(Computation(lambda x: jnp.concatenate([x, jnp.zeros(x.shape)], 1)))
