"""A network as the program that is exported, traced from its module tree.

    video     uint8 [N, T, S, S, 3]        RGB frames after resize and crop; N is free
    logits    float32 [N, K]
    features  float32 [N, T, h, w, C]      before the average pool, for activation maps

The program is the module tree itself, with batch norm folded into its tensors and the
normalisation of pixels before it: what a graph computes is what `tsm_jax.models` says.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from tsm_jax.models.layers import ConvNorm
from tsm_jax.models.network import build_network
from tsm_jax.models.normalize import normalize
from tsm_jax.models.tsm import TSM
from tsm_jax.weights.model_directory import Model, check_tensors


class Program:
    """Logits and features of clips.

    Args:
        module: with its weights; its batch norms get folded.
        crop_size: S.
    """

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
    """The program of a model, with convolutions and activations in `float32` or `bfloat16`.

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
    return Program(module, model.preprocessing.crop_size)
