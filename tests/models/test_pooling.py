"""Compares max pooling and its gradient with XLA's own."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsm_jax.models.pooling import average_pool_2x2, max_pool_3x3_stride_2


def images(shape=(2, 7, 8, 3)):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def by_xla(x):
    window, strides, padding = (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


@partial(jax.jit, static_argnums=0)
def result_and_gradient(function, x, cotangent):
    result, gradient = jax.vjp(function, x)
    return result, gradient(cotangent)[0]


def test_max_pool_ignores_its_padding():
    x = -1 - abs(images())
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected = np.stack(
        [
            np.stack([padded[:, r : r + 3, c : c + 3].max((1, 2)) for c in range(0, 8, 2)], 1)
            for r in range(0, 7, 2)
        ],
        1,
    )
    np.testing.assert_array_equal(max_pool_3x3_stride_2(jnp.asarray(x)), expected)


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (8, 7), (1, 2)])
@pytest.mark.parametrize("values", ["distinct", "many equal"])
def test_max_pool_has_the_gradient_of_xla(values, size):
    x = images((2, *size, 3))
    x = jnp.asarray(np.round(x) if values == "many equal" else x)
    cotangent = jnp.asarray(images(by_xla(x).shape))
    expected, expected_gradient = result_and_gradient(by_xla, x, cotangent)
    actual, actual_gradient = result_and_gradient(max_pool_3x3_stride_2, x, cotangent)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_allclose(actual_gradient, expected_gradient, atol=1e-6)


@pytest.mark.parametrize("place", [(0, 0), (3, 3), (6, 7)])
def test_max_pool_propagates_nan_in_training(place):
    x = images()
    x[0, *place, 1] = np.nan
    trained, _ = result_and_gradient(max_pool_3x3_stride_2, x, np.zeros((2, 4, 4, 3), np.float32))
    assert jnp.isnan(trained).any()


@pytest.mark.parametrize("shape", [(6, 4), (5, 4), (5, 7)])
def test_average_pooling_ignores_missing_pixels(shape):
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    rows, columns = (range(0, size, 2) for size in shape)
    expected = [[x[:, r : r + 2, c : c + 2].mean((1, 2)) for c in columns] for r in rows]
    found = average_pool_2x2(jnp.asarray(x))
    np.testing.assert_allclose(found, np.moveaxis(expected, 2, 0), rtol=1e-5, atol=1e-6)
