"""A network as the program that is exported, traced from its module tree, and as StableHLO.

    video     uint8 [N, T, S, S, 3]        RGB frames after resize and crop; N is free
    logits    float32 [N, K]
    features  float32 [N, T, h, w, C]      before the average pool, for activation maps

The program is the module tree itself, with batch norm folded into its tensors and the
normalisation of pixels before it: what a graph computes is what `tsm_jax.models` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from tsm_jax.data.protocols import protocol_of
from tsm_jax.models.layers import ConvNorm
from tsm_jax.models.network import build_network
from tsm_jax.models.normalize import normalize
from tsm_jax.models.tsm import TSM
from tsm_jax.weights.model_directory import Model, check_tensors

PLATFORMS = ("cpu", "cuda", "tpu")


class Program:
    """Logits and features of clips of S x S pixels, by a module whose batch norms get folded."""

    def __init__(self, module: TSM, crop_size: int):
        for _, child in nnx.iter_modules(module):
            if isinstance(child, ConvNorm):
                child.fold()
        self._module = module
        self._crop_size = crop_size

    def __call__(self, video: jax.Array) -> tuple[jax.Array, jax.Array]:
        """In float32 every product is one of float32 also on GPU and TPU, whose default would be
        TF32 or passes of bfloat16."""
        module, frames = self._module, self._module.num_segments
        float32 = module.dtype == jnp.float32
        with jax.default_matmul_precision("highest" if float32 else None):
            x = module.features(normalize(video))
        x = x.astype(jnp.float32)
        with jax.default_matmul_precision("highest"):
            logits = module.head(x, frames, dropout_keys=None)
        return logits, x.reshape(-1, frames, *x.shape[1:])

    @property
    def video(self) -> jax.ShapeDtypeStruct:
        """The input of any number of clips."""
        (clips,) = export.symbolic_shape("N")
        shape = (clips, self._module.num_segments, self._crop_size, self._crop_size, 3)
        return jax.ShapeDtypeStruct(shape, jnp.uint8)


def make_program(model: Model, dtype: str = "float32", source: str = "the model") -> Program:
    """The program of a model for the views of its protocol, with convolutions and activations in
    `float32` or `bfloat16`.

    Raises:
        UserError: the tensors do not fit the architecture.
    """
    network = build_network(model.architecture, dtype)
    params, stats = network.param_shapes, network.batch_stat_shapes
    check_tensors(model.tensors, {**params, **stats}, source)
    module = network.module(
        {name: model.tensors[name] for name in params},
        {name: model.tensors[name] for name in stats},
    )
    return Program(module, protocol_of(model.preprocessing).crop_size)


def export_stablehlo(program: Program) -> bytes:
    """The program with its weights for any batch size on CPU, CUDA and TPU.

    JAX promises to read it for six months of releases; the model's tensors are in the folder, too,
    so that it can be exported again.
    """
    jitted = jax.jit(lambda video: program(video))  # its own, so that nothing is in a cache
    with _without_source_locations():
        return bytes(export.export(jitted, platforms=PLATFORMS)(program.video).serialize())


@contextmanager
def _without_source_locations() -> Iterator[None]:
    """jax writes the paths of the source files of this machine beside every operation."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
