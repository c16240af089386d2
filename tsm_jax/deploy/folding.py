"""A trained network as a short list of convolutions, batch norm folded into them.

At inference `norm(conv(x))` is one convolution with a bias, and the pixels' normalisation is the
subtraction of a mean in front of a scaled stem. The list is read off the module tree itself
(kernels, strides, paddings, shifts), so that a graph written from it cannot drift from the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from flax import nnx

from tsm_jax.models.architecture import Architecture
from tsm_jax.models.layers import ConvNorm
from tsm_jax.models.normalize import MEAN, STD
from tsm_jax.models.shift import fold_sizes
from tsm_jax.models.tsm import TSM
from tsm_jax.weights.model_directory import Model, check_tensors

# What is subtracted from uint8 RGB; the division by the deviation is in the stem's kernel.
PIXEL_MEAN = (255.0 * MEAN.astype(np.float64)).astype(np.float32)


@dataclass(frozen=True)
class FoldedConv:
    """Convolution with bias; `padding` pixels of zeros on every side.

    Attributes:
        kernel: float32 `[H, W, C_in, C_out]`.
        bias: float32 `[C_out]`.
        stride: of both axes.
        padding: of both axes.
    """

    kernel: np.ndarray
    bias: np.ndarray
    stride: int
    padding: int


@dataclass(frozen=True)
class Folds:
    """Channels `[0, first_end)` come from the previous frame, `[first_end, second_end)` from the
    next one; the other way round where `past_first` is False. The rest stays."""

    first_end: int
    second_end: int
    past_first: bool


@dataclass(frozen=True)
class FoldedBlock:
    """Shift, convolutions with ReLU between them, plus the shortcut, then ReLU."""

    folds: Folds | None
    convs: tuple[FoldedConv, ...]
    shortcut: FoldedConv | None


@dataclass(frozen=True)
class FoldedNetwork:
    """Everything that decides a logit.

    Attributes:
        num_segments: T.
        crop_size: S: the input is uint8 `[N, T, S, S, 3]`.
        stem: for pixels less `PIXEL_MEAN`; ReLU and the 3x3 max pool of stride 2 follow.
        blocks: of all stages.
        fc_kernel: float32 `[C, K]`.
        fc_bias: float32 `[K]`.
    """

    num_segments: int
    crop_size: int
    stem: FoldedConv
    blocks: tuple[FoldedBlock, ...]
    fc_kernel: np.ndarray
    fc_bias: np.ndarray


def fold(model: Model, source: str = "the model") -> FoldedNetwork:
    """Folds a model.

    Raises:
        UserError: the tensors do not fit the architecture.
    """
    module = _abstract_module(model.architecture)
    check_tensors(model.tensors, _tensor_shapes(module), source)
    tensors = {name: np.asarray(value, np.float64) for name, value in model.tensors.items()}
    backbone = module.backbone
    stem = _fold_conv(backbone.stem, "backbone.stem", tensors)
    return FoldedNetwork(
        num_segments=model.architecture.num_segments,
        crop_size=model.preprocessing.crop_size,
        stem=_scale_input(stem),
        blocks=tuple(
            _fold_block(block, f"backbone.stages.{stage}.{index}", tensors)
            for stage, blocks in enumerate(backbone.stages)
            for index, block in enumerate(blocks)
        ),
        fc_kernel=tensors["head.fc.kernel"].astype(np.float32),
        fc_bias=tensors["head.fc.bias"].astype(np.float32),
    )


def _abstract_module(architecture: Architecture) -> TSM:
    """The module tree with shapes in place of arrays."""
    return nnx.eval_shape(lambda: TSM(**asdict(architecture), dropout=0.0))


def _tensor_shapes(module: TSM) -> dict[str, tuple[int, ...]]:
    variables = nnx.to_flat_state(nnx.state(module, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {".".join(map(str, path)): variable.get_value().shape for path, variable in variables}


def _fold_block(block, name: str, tensors: Mapping[str, np.ndarray]) -> FoldedBlock:
    convs = [child for child in ("conv1", "conv2", "conv3") if hasattr(block, child)]
    shortcut = block.shortcut
    return FoldedBlock(
        folds=_folds(block),
        convs=tuple(
            _fold_conv(getattr(block, child), f"{name}.{child}", tensors) for child in convs
        ),
        shortcut=None if shortcut is None else _fold_conv(shortcut, f"{name}.shortcut", tensors),
    )


def _folds(block) -> Folds | None:
    if not isinstance(block.shift, partial) or block.shift.keywords["direction"] == "none":
        return None
    how = block.shift.keywords
    channels = block.conv1.conv.kernel.get_value().shape[2]
    first_end, second_end = fold_sizes(channels, how["num_segments"], how["fraction"])
    return Folds(first_end, second_end, how["direction"] == "past_first")


def _fold_conv(layer: ConvNorm, name: str, tensors: Mapping[str, np.ndarray]) -> FoldedConv:
    """In float64, so that folding costs one rounding."""
    scale, bias, mean, var = (
        tensors[f"{name}.norm.{part}"] for part in ("scale", "bias", "mean", "var")
    )
    multiplier = scale / np.sqrt(var + layer.norm.epsilon)
    return FoldedConv(
        kernel=(tensors[f"{name}.conv.kernel"] * multiplier).astype(np.float32),
        bias=(bias - mean * multiplier).astype(np.float32),
        stride=layer.conv.stride,
        padding=layer.conv.padding,
    )


def _scale_input(stem: FoldedConv) -> FoldedConv:
    """For input of `255 * STD` times the size. Zero stays zero, so the padding stays right."""
    deviation = 255.0 * STD.astype(np.float64)
    kernel = (stem.kernel / deviation[:, None]).astype(np.float32)
    return FoldedConv(kernel, stem.bias, stem.stride, stem.padding)
