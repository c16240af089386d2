"""Every tensor of PaddleVideo's TSM ResNet-50, -101 and -152: its names there and here.

PaddleVideo's names come from paddlevideo/modeling/backbones/resnet_tsm.py and heads/tsm_head.py.
It counts the convolutions of a block from 0, we from 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tsm_jax.models.architecture import CLASSIFIER, CLASSIFIER_BIAS

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
FC_WEIGHT, FC_BIAS = "head.fc.weight", "head.fc.bias"
_EXPANSION = 4
_NORM = {"scale": "weight", "bias": "bias", "mean": "_mean", "var": "_variance"}


class PaddleTensor(NamedTuple):
    """One tensor.

    Attributes:
        paddle: its structured name in PaddleVideo, as `backbone.res2a.conv0._conv.weight`.
        ours: its name here, as `backbone.stages.0.0.conv1.conv.kernel`.
        shape: in a Paddle file; kernels are OIHW.
        parameter: Paddle's own name of the parameter, as `res2a_branch2a_weights`.
    """

    paddle: str
    ours: str
    shape: tuple[int, ...]
    parameter: str


class _ConvNorm(NamedTuple):
    paddle: str
    ours: str
    shape: tuple[int, int, int, int]  # OIHW
    kernel_parameter: str
    norm_parameter: str


def paddle_tensors(backbone: str, width: int, num_classes: int | None) -> Iterator[PaddleTensor]:
    """Every tensor in the order of PaddleVideo's state dict."""
    for number, layer in enumerate(_conv_norms(backbone, width)):
        yield PaddleTensor(
            f"{layer.paddle}._conv.weight",
            f"{layer.ours}.conv.kernel",
            layer.shape,
            layer.kernel_parameter,
        )
        parameters = {
            "scale": f"{layer.norm_parameter}_scale",
            "bias": f"{layer.norm_parameter}_offset",
            "mean": f"batch_norm2d_{number}.w_0",
            "var": f"batch_norm2d_{number}.w_1",
        }
        for ours, paddle in _NORM.items():
            yield PaddleTensor(
                f"{layer.paddle}._batch_norm.{paddle}",
                f"{layer.ours}.norm.{ours}",
                layer.shape[:1],
                parameters[ours],
            )
    if num_classes is not None:
        features = 8 * _EXPANSION * width
        yield PaddleTensor(FC_WEIGHT, CLASSIFIER, (features, num_classes), "fc_0.w_0")
        yield PaddleTensor(FC_BIAS, CLASSIFIER_BIAS, (num_classes,), "fc_0.b_0")


def _conv_norms(backbone: str, width: int) -> Iterator[_ConvNorm]:
    stem_shape = (width, 3, 7, 7)
    yield _ConvNorm("backbone.conv", "backbone.stem", stem_shape, "conv1_weights", "bn_conv1")
    features_in = width
    for stage, num_blocks in enumerate(BLOCKS[backbone]):
        for index in range(num_blocks):
            inner = width * 2**stage
            yield from _block(
                _block_name(stage, index, num_blocks), stage, index, features_in, inner
            )
            features_in = _EXPANSION * inner


def _block(name: str, stage: int, index: int, features_in: int, inner: int) -> Iterator[_ConvNorm]:
    features = _EXPANSION * inner
    layers = [
        ("conv0", "conv1", "branch2a", (inner, features_in, 1, 1)),
        ("conv1", "conv2", "branch2b", (inner, inner, 3, 3)),
        ("conv2", "conv3", "branch2c", (features, inner, 1, 1)),
    ]
    if index == 0:
        layers.append(("short", "shortcut", "branch1", (features, features_in, 1, 1)))
    for paddle, ours, branch, shape in layers:
        yield _ConvNorm(
            f"backbone.res{name}.{paddle}",
            f"backbone.stages.{stage}.{index}.{ours}",
            shape,
            f"res{name}_{branch}_weights",
            f"bn{name}_{branch}",
        )


def _block_name(stage: int, index: int, num_blocks: int) -> str:
    """`2a`, `2b`, ...; the long third stage of ResNet-101 and -152 is `4a`, `4b1`, `4b2`, ..."""
    if stage == 2 and num_blocks > 6 and index > 0:
        return f"4b{index}"
    return f"{stage + 2}{chr(ord('a') + index)}"
