"""The folded network as a JAX program, and that program as a StableHLO file.

The file holds the weights, too: it runs with nothing but jax and NumPy. Input and outputs are
those of the ONNX graph (see `onnx_graph`), but features are `[N, T, h, w, C]`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import export, lax

from tsm_jax.deploy.folding import PIXEL_MEAN, FoldedBlock, FoldedConv, FoldedNetwork, Folds
from tsm_jax.models.pooling import max_pool_3x3_stride_2

PLATFORMS = ("cpu", "cuda", "tpu")

_FLOAT32 = lax.Precision.HIGHEST


def forward(
    network: FoldedNetwork, video: jax.Array, dtype: str = "float32"
) -> tuple[jax.Array, jax.Array]:
    """uint8 `[N, T, S, S, 3]` to logits `[N, K]` and features `[N, T, h, w, C]`, float32.

    Args:
        network: with weights.
        video: RGB frames.
        dtype: of convolutions and activations, `float32` or `bfloat16`. float32 means float32
            also on GPU and TPU, whose default would be TF32 or passes of bfloat16.
    """
    frames = network.num_segments
    images = video.reshape(-1, *video.shape[2:]).astype(jnp.float32) - PIXEL_MEAN
    x = jax.nn.relu(_conv(images.astype(dtype), network.stem))
    x = max_pool_3x3_stride_2(x)
    for block in network.blocks:
        x = _block(x, block, frames)
    x = x.astype(jnp.float32)
    features = x.reshape(-1, frames, *x.shape[1:])  # [N, T, h, w, C]
    pooled = x.mean((1, 2)).reshape(-1, frames, x.shape[-1]).mean(1)  # [N, C]
    logits = jnp.dot(pooled, network.fc_kernel, precision=_FLOAT32) + network.fc_bias
    return logits, features


def export_stablehlo(network: FoldedNetwork, dtype: str = "float32") -> bytes:
    """Serialises the program for any batch size on CPU, CUDA and TPU.

    JAX promises to read it for six months of releases; the model's tensors are in the folder, too,
    so that it can be exported again.
    """
    (clips,) = export.symbolic_shape("N")
    size = network.crop_size
    video = jax.ShapeDtypeStruct((clips, network.num_segments, size, size, 3), jnp.uint8)
    program = jax.jit(lambda video: forward(network, video, dtype))
    return bytes(export.export(program, platforms=PLATFORMS)(video).serialize())


def _block(x: jax.Array, block: FoldedBlock, frames: int) -> jax.Array:
    y = x if block.folds is None else _shift(x, block.folds, frames)
    for conv in block.convs[:-1]:
        y = jax.nn.relu(_conv(y, conv))
    y = _conv(y, block.convs[-1])
    return jax.nn.relu(y + (x if block.shortcut is None else _conv(x, block.shortcut)))


def _conv(x: jax.Array, conv: FoldedConv) -> jax.Array:
    y = lax.conv_general_dilated(
        x,
        jnp.asarray(conv.kernel, x.dtype),
        window_strides=(conv.stride,) * 2,
        padding=[(conv.padding, conv.padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=_FLOAT32 if x.dtype == jnp.float32 else None,
    )
    return y + jnp.asarray(conv.bias, x.dtype)


def _shift(x: jax.Array, folds: Folds, frames: int) -> jax.Array:
    clips = x.reshape(-1, frames, *x.shape[1:])  # [N, T, H, W, C]
    first, second, rest = jnp.split(clips, (folds.first_end, folds.second_end), axis=4)
    step = 1 if folds.past_first else -1
    moved = [_move(first, step), _move(second, -step), rest]
    return jnp.concatenate(moved, axis=4).reshape(x.shape)


def _move(clips: jax.Array, step: int) -> jax.Array:
    """Frame t of the result is frame `t - step`, or zeros where there is none."""
    kept = clips[:, :-1] if step == 1 else clips[:, 1:]
    padding = [(0, 0)] * clips.ndim
    padding[1] = (1, 0) if step == 1 else (0, 1)
    return jnp.pad(kept, padding)
