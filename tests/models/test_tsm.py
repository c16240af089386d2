"""Tests of the whole network: sizes, layouts, precision, and the effect of the shift."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from tsm_jax.models.network import Network
from tsm_jax.models.resnet import BasicBlock, Bottleneck
from tsm_jax.models.tsm import TSM

CLASSES = 5


def network(backbone="resnet18", **arguments):
    arguments = {"num_classes": CLASSES, "num_segments": 4, "width": 8, **arguments}
    return Network(lambda: TSM(backbone, **arguments))


@pytest.fixture(scope="module")
def tensors():
    """Weights whose batch norms differ from the identity."""
    params, batch_stats = network().init(0)
    rng = np.random.default_rng(0)

    def vary(name, value):
        if name.endswith((".scale", ".var")):
            return rng.uniform(0.5, 1.5, value.shape).astype(np.float32)
        if name.endswith((".bias", ".mean")):
            return rng.normal(0, 0.1, value.shape).astype(np.float32)
        return np.asarray(value) * (100 if name == "head.fc.kernel" else 1)

    return tuple({name: vary(name, t[name]) for name in t} for t in (params, batch_stats))


@pytest.fixture(scope="module")
def video():
    rng = np.random.default_rng(1)
    return rng.normal(size=(2, 4, 32, 32, 3)).astype(np.float32)


@cache
def jitted(**arguments):
    return jax.jit(network(**arguments).apply)


def logits(tensors, video, **arguments):
    return np.asarray(jitted(**arguments)(*tensors, jnp.asarray(video))[0])


# Numbers of weights of the published image networks without their 1000-way classifier.
BACKBONE_PARAMETERS = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
}


@pytest.mark.parametrize(("backbone", "parameters"), BACKBONE_PARAMETERS.items())
def test_has_the_parameters_of_the_image_network(backbone, parameters):
    shapes = network(backbone, width=64).param_shapes
    sizes = [np.prod(s) for name, s in shapes.items() if name.startswith("backbone.")]
    assert sum(sizes) == parameters


@pytest.mark.parametrize(
    ("backbone", "every", "shifted"),
    [("resnet50", 1, 16), ("resnet101", 1, 33), ("resnet101", 2, 18), ("resnet152", 2, 26)],
)
def test_shifts_the_same_blocks_as_the_references(backbone, every, shifted):
    model = nnx.eval_shape(lambda: TSM(backbone, num_classes=2, width=8, shift_every=every))
    blocks = [block for stage in model.backbone.stages for block in stage]
    assert all(isinstance(block, (BasicBlock, Bottleneck)) for block in blocks)
    assert sum(isinstance(block.shift, partial) for block in blocks) == shifted


def test_bfloat16_is_close_to_float32_and_returns_float32(tensors, video):
    exact = logits(tensors, video)
    coarse = logits(tensors, video, dtype=jnp.dtype(jnp.bfloat16))
    assert coarse.dtype == np.float32
    assert 0 < abs(coarse - exact).max() < 0.05 * abs(exact).max()


def test_without_shift_the_order_of_frames_does_not_matter(tensors, video):
    shuffled = video[:, [2, 0, 3, 1]]
    np.testing.assert_allclose(
        logits(tensors, video, shift="none"),
        logits(tensors, shuffled, shift="none"),
        rtol=1e-4,
        atol=1e-5,
    )
    assert abs(logits(tensors, video) - logits(tensors, shuffled)).max() > 1e-3


def test_playing_backwards_equals_the_other_direction(tensors, video):
    np.testing.assert_allclose(
        logits(tensors, video, shift="past_first"),
        logits(tensors, video[:, ::-1], shift="future_first"),
        rtol=1e-4,
        atol=1e-4,
    )
    difference = logits(tensors, video, shift="future_first") - logits(tensors, video)
    assert abs(difference).max() > 1e-3


def test_a_clip_does_not_depend_on_its_batch(tensors, video):
    np.testing.assert_allclose(
        logits(tensors, video)[:1], logits(tensors, video[:1]), rtol=1e-4, atol=1e-5
    )


def test_batch_norm_groups_are_groups_of_clips(tensors, video):
    """With two groups of one clip each, training treats each clip as if it were alone."""
    train = jax.jit(partial(network(batch_norm_group=1).apply, train=True))
    together, alone = (train(*tensors, clips)[0] for clips in (video, video[[1, 1]]))
    np.testing.assert_allclose(together[1], alone[1], rtol=1e-3, atol=1e-3)


def test_a_batch_that_cannot_be_divided_into_groups_is_refused(tensors, video):
    three = jnp.concatenate([jnp.asarray(video), jnp.asarray(video[:1])])
    with pytest.raises(ValueError, match="3 clips cannot be divided into batch-norm groups of 2"):
        network(batch_norm_group=2).apply(*tensors, three, train=True)


def test_dropout_depends_on_the_key_and_needs_one(tensors, video):
    apply = jax.jit(network(dropout=0.5).apply)
    first, again, other = (
        apply(*tensors, video, dropout_keys=jax.random.split(jax.random.key(seed), len(video)))[0]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(apply(*tensors, video)[0], logits(tensors, video))


def test_remat_keeps_a_fraction_for_the_backward_pass(video):
    def kept_bytes(remat):
        tested = network("resnet50", remat=remat)
        params, stats = tested.param_shapes, tested.batch_stat_shapes
        zeros = {name: np.zeros(shape, np.float32) for name, shape in stats.items()}

        def apply(params):
            return tested.apply(params, zeros, video, train=True)[0]

        shapes = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in params.items()}
        kept = jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(apply, params)[1], shapes))
        return sum(array.size for array in kept) - sum(np.prod(shape) for shape in params.values())

    assert kept_bytes(True) < 0.4 * kept_bytes(False)


def products(jaxpr):
    """Yields the convolutions and matrix products of a program and of all programs it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet_v2", "pplcnet_v2_attention"])
def test_products_of_float32_are_exact_on_every_device(backbone):
    """By default, jax uses TF32 or bfloat16 passes on GPU and TPU, also in the gradients."""
    tested = network(backbone, num_segments=4)
    params, batch_stats = tested.init(0)
    video = jnp.zeros((1, 4, 64, 64, 3))

    def loss(params):
        return tested.apply(params, batch_stats, video, train=True)[0].sum()

    found = list(products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    assert len(found) > 50
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert {equation.params["precision"] for equation in found} == {highest}
