"""Compares layers with plain NumPy."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsm_jax.models.batch_norm import batch_norm
from tsm_jax.models.convolve import image_conv, is_small, small_image_conv
from tsm_jax.models.depthwise import depthwise_conv
from tsm_jax.models.layers import BatchNorm, Conv, ConvNorm


def images(shape=(4, 6, 5, 3)):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def conv_by_definition(x, kernel, stride, padding):
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    rows = (x.shape[1] - size) // stride + 1
    columns = (x.shape[2] - size) // stride + 1
    out = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for r in range(rows):
        for c in range(columns):
            window = x[:, r * stride : r * stride + size, c * stride : c * stride + size]
            out[:, r, c] = np.tensordot(window, kernel, axes=((1, 2, 3), (0, 1, 2)))
    return out


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_conv_pads_symmetrically(kernel_size, stride):
    conv = Conv(3, 4, kernel_size, stride=stride)
    conv.kernel[...] = images((kernel_size, kernel_size, 3, 4))
    x = images()
    expected = conv_by_definition(x, np.asarray(conv.kernel[...]), stride, kernel_size // 2)
    np.testing.assert_allclose(conv(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_depthwise_conv_keeps_channels_apart(kernel_size):
    conv = Conv(3, 3, kernel_size, stride=2, feature_groups=3)
    conv.kernel[...] = images((kernel_size, kernel_size, 1, 3))
    x, kernel = images(), np.asarray(conv.kernel[...])
    expected = [
        conv_by_definition(x[..., [c]], kernel[..., [c]], 2, kernel_size // 2) for c in range(3)
    ]
    out = conv(jnp.asarray(x))
    np.testing.assert_allclose(out, np.concatenate(expected, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conv", [{"kernel_size": 1}, {"kernel_size": 3, "feature_groups": 4}])
def test_folding_preserves_the_output(conv):
    layer = ConvNorm(4, 4, **conv)
    layer.conv.kernel[...] = images(layer.conv.kernel[...].shape)
    rng = np.random.default_rng(1)
    for tensor in (layer.norm.scale, layer.norm.bias, layer.norm.mean, layer.norm.var):
        tensor[...] = rng.uniform(0.1, 2, 4).astype(np.float32)
    x = jnp.asarray(images((2, 6, 5, 4)))
    expected = layer(x, groups=None, activation="relu")
    layer.fold()
    np.testing.assert_allclose(
        layer(x, groups=None, activation="relu"), expected, rtol=1e-5, atol=1e-5
    )
    assert 0.1 < float((expected == 0).mean()) < 0.9


def test_batch_norm_trains_on_the_statistics_of_each_group():
    x = images((6, 4, 4, 3)) * 3 + 1
    norm = BatchNorm(3)
    out = np.asarray(norm(jnp.asarray(x), groups=2)).reshape(2, 3 * 4 * 4, 3)
    np.testing.assert_allclose(out.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(1), 1, atol=1e-4)
    groups = x.reshape(2, 3 * 4 * 4, 3)
    np.testing.assert_allclose(norm.mean[...], 0.1 * groups.mean((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * groups.var(1).mean(0), rtol=1e-4)


def test_batch_norm_uses_running_statistics_in_evaluation():
    norm = BatchNorm(3)
    norm.mean[...], norm.var[...] = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 1.0, 9.0])
    norm.scale[...], norm.bias[...] = jnp.array([1.0, 2.0, 1.0]), jnp.array([0.0, 1.0, 0.0])
    x = images()
    expected = (x - [1, 2, 3]) / np.sqrt(np.array([4, 1, 9]) + 1e-5) * [1, 2, 1] + [0, 1, 0]
    np.testing.assert_allclose(norm(jnp.asarray(x), groups=None), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(norm.mean[...], [1, 2, 3])


def test_batch_norm_in_bfloat16_keeps_float32_statistics():
    x = jnp.asarray(images((8, 8, 8, 3)) + 100, jnp.bfloat16)
    norm = BatchNorm(3)
    assert norm(x, groups=1).dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64).reshape(-1, 3)
    np.testing.assert_allclose(norm.mean[...], 0.1 * exact.mean(0), rtol=1e-5)


ACTIVATIONS = {
    None: lambda y: y,
    "relu": lambda y: jnp.where(y > 0, y, 0),
    "relu6": lambda y: jnp.clip(y, 0, 6),
    "leaky_relu": lambda y: jnp.where(y > 0, y, 0.01 * y),
}


def assert_same(ours, by_definition, *arguments):
    """Compares results and gradients."""

    @partial(jax.jit, static_argnums=0)
    def result_and_gradients(function, cotangent, *arguments):
        result, gradients = jax.vjp(function, *arguments)
        return result, gradients(cotangent)

    cotangent = jnp.asarray(images(jax.eval_shape(by_definition, *arguments).shape))
    expected, expected_gradients = result_and_gradients(by_definition, cotangent, *arguments)
    actual, actual_gradients = result_and_gradients(ours, cotangent, *arguments)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    for got, wanted in zip(actual_gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def ordinary_conv(stride, groups=1):
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride,) * 2,
            [(len(kernel) // 2,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return conv


@pytest.fixture(params=["cpu", "cuda"])
def as_on(request, monkeypatch):
    """Makes this machine use the implementation for the device of the parameter."""

    def choose(*arguments, default, **ways):
        return ways.get(request.param, default)(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("as_on")
@pytest.mark.parametrize(
    ("as_on", "activation", "groups"),
    [
        *[("cpu", activation, 1) for activation in ACTIVATIONS],
        *[(device, activation, 3) for device in ("cpu", "cuda") for activation in ("relu", None)],
    ],
    indirect=["as_on"],
)
def test_batch_norm_gradient_is_that_of_its_definition(groups, activation):
    def by_definition(x, scale, bias):
        grouped = x.reshape(groups, -1, *x.shape[1:])
        mean, var = (f((1, 2, 3), keepdims=True) for f in (grouped.mean, grouped.var))
        y = (grouped - mean) / jnp.sqrt(var + 1e-5) * scale + bias
        return ACTIVATIONS[activation](y).reshape(x.shape)

    def ours(x, scale, bias):
        return batch_norm(x, scale, bias, groups, activation)[0]

    x = jnp.asarray(images((6, 4, 5, 3)) * 3 + 1)
    assert_same(ours, by_definition, x, jnp.array([1.0, 8.0, 0.5]), jnp.array([0.0, 1.0, -1.0]))


@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_convolution_has_the_gradients_of_a_convolution(stride):
    def ours(x, kernel):
        conv = Conv(3, 4, 1, stride=stride)
        conv.kernel[...] = kernel
        return conv(x)

    x, kernel = jnp.asarray(images()), jnp.asarray(images((1, 1, 3, 4)))
    assert_same(ours, ordinary_conv(stride), x, kernel)


@pytest.mark.usefixtures("as_on")
@pytest.mark.parametrize(
    ("size", "stride", "shape"), [(3, 1, (6, 5)), (3, 2, (6, 5)), (5, 2, (7, 8))]
)
def test_depthwise_convolution_is_the_same_on_every_device(size, stride, shape):
    x, kernel = jnp.asarray(images((2, *shape, 3))), jnp.asarray(images((size, size, 1, 3)))
    ours = partial(depthwise_conv, stride=stride)
    assert_same(ours, ordinary_conv(stride, groups=3), x, kernel)


@pytest.mark.usefixtures("as_on")
@pytest.mark.parametrize(
    ("as_on", "size", "shape"),
    [
        *[("cuda", size, (6, 8)) for size in (3, 5, 7)],
        *[(device, 3, (7, 8)) for device in ("cuda", "cpu")],  # an ordinary one
    ],
    indirect=["as_on"],
)
def test_convolution_of_images_is_the_same_on_every_device(size, shape):
    x, kernel = jnp.asarray(images((2, *shape, 3))), jnp.asarray(images((size, size, 3, 4)))
    assert_same(image_conv, ordinary_conv(2), x, kernel)


@pytest.mark.usefixtures("as_on")
@pytest.mark.parametrize(
    ("as_on", "size", "stride", "shape"),
    [
        ("cpu", 3, 1, (2, 2)),
        ("cpu", 3, 1, (1, 5)),
        ("cpu", 3, 2, (4, 3)),
        ("cpu", 3, 2, (3, 2)),
        ("cpu", 5, 1, (4, 6)),
        ("cpu", 5, 2, (7, 8)),
        ("cuda", 3, 2, (3, 2)),  # an ordinary one
    ],
    indirect=["as_on"],
)
def test_convolution_of_images_smaller_than_its_kernel(size, stride, shape):
    x, kernel = jnp.asarray(images((2, *shape, 2))), jnp.asarray(images((size, size, 2, 4)))
    assert is_small(x.shape, size, stride)
    ours = partial(small_image_conv, stride=stride)
    assert_same(ours, ordinary_conv(stride), x, kernel)


def test_a_kernel_smaller_than_its_images_is_no_matrix_product():
    assert not is_small((1, 3, 3, 1), 3, 1)
    assert not is_small((1, 5, 5, 1), 3, 2)


@pytest.mark.parametrize(("platform", "barriers"), [("cpu", 0), ("cuda", 1)])
def test_a_gpu_reads_strided_pixels_before_their_product(platform, barriers):
    """Fusing both into one kernel aborts XLA."""
    conv, x = Conv(16, 8, 1, stride=2), jax.ShapeDtypeStruct((1, 56, 56, 16), jnp.float32)
    text = jax.jit(conv).trace(x).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.slice") == 1
    assert text.count("stablehlo.optimization_barrier") == barriers


def test_batch_norm_keeps_the_digits_of_a_nearly_constant_channel():
    x = 300 + 1e-2 * images((4, 6, 5, 3))
    exact = x.astype(np.float64).reshape(-1, 3)
    expected = (x - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    y, mean, var = batch_norm(jnp.asarray(x), jnp.ones(3), jnp.zeros(3), 1, None)
    np.testing.assert_allclose(mean[0], exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(var[0], exact.var(0), rtol=1e-3)
    np.testing.assert_allclose(y, expected, atol=5e-3)  # a unit in the last place of x is 2e-3


def test_frozen_batch_norm_uses_and_keeps_its_statistics():
    norm = BatchNorm(3)
    norm.mean[...], norm.var[...] = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 1.0, 9.0])
    x = jnp.asarray(images())
    expected = norm(x, groups=None)
    norm.frozen = True
    np.testing.assert_array_equal(norm(x, groups=2), expected)
    np.testing.assert_array_equal(norm.mean[...], [1, 2, 3])

    def square(x, scale):
        traced = BatchNorm(3)  # a module can be changed where it was made
        traced.frozen = True
        traced.scale[...] = scale
        return jnp.square(traced(x, groups=1)).sum()

    for_x, for_scale = jax.grad(square, argnums=(0, 1))(x, jnp.ones(3))
    assert np.all(for_scale == 0) and np.all(for_x != 0)


def test_unbiased_running_variance_equals_pytorchs():
    norm = BatchNorm(3)
    norm.unbiased = True
    x = images((4, 2, 2, 3))
    norm(jnp.asarray(x), groups=2)
    variance = x.reshape(2, 8, 3).var(1, ddof=1).mean(0)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * variance, rtol=1e-5)
