"""PaddleVideo's networks: tensor names in PaddleVideo and here, and shapes.

Reference: paddlevideo/modeling: backbones/resnet_tsm.py and heads/tsm_head.py for TSM,
backbones/resnet_tweaks_tsm.py, pptsm_mv2.py and pptsm_v2.py for PP-TSM.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from tsm_jax.models.architecture import CLASSIFIER, CLASSIFIER_BIAS
from tsm_jax.weights.tensor_checks import network_shapes, shape_of, to_oihw

# Blocks per stage of PaddleVideo's TSMs.
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}

# The matrix of PP-TSMv2's temporal attention, `[T, T]`.
_ATTENTION = "backbone.attention.fc.kernel"
_PADDLE_ATTENTION = "backbone.global_attention.fc.weight"

_NORM = {"scale": "weight", "bias": "bias", "mean": "_mean", "var": "_variance"}
_EPSILON = 1e-5
_SUM = re.compile(r"backbone\.stages\.\d+\.\d+\.dw_conv\.(weight|bias)")

Shapes = Mapping[str, tuple[int, ...]]
Sizes = tuple[int, int | None, int | None]  # width, number of classes, number of segments


class PaddleTensor(NamedTuple):
    """One tensor of a network.

    Attributes:
        paddle: structured name in PaddleVideo, such as `backbone.res2a.conv0._conv.weight`.
        ours: our name, such as `backbone.stages.0.0.conv1.conv.kernel`.
        shape: shape in a Paddle file; kernels are OIHW.
        our_shape: our shape; kernels are HWIO, except that some 1x1 kernels are matrices.
        parameter: Paddle's own name of the parameter, such as `res2a_branch2a_weights`.
    """

    paddle: str
    ours: str
    shape: tuple[int, ...]
    our_shape: tuple[int, ...]
    parameter: str


@dataclass(frozen=True)
class PaddleNetwork:
    """One of PaddleVideo's networks.

    Attributes:
        marks: prefixes of tensor names that distinguish it from the networks after it in
            `NETWORKS`.
        stem: the layer whose number of features determines the width.
        width: factor from this number of features to `config.model.width`.
        layers: function from our tensor names to pairs of a layer's name in PaddleVideo and here,
            in PaddleVideo's order; it may yield layers that do not exist.
        conv, norm: PaddleVideo's names for the two parts of a layer.
        fc: PaddleVideo's name for the classifier.
        parameter: function that returns Paddle's own name of a parameter, given the name of its
            layer, our name of the part and the number of the layer; None: the structured name.
    """

    marks: tuple[str, ...]
    stem: str
    layers: Callable[[Collection[str]], Iterator[tuple[str, str]]]
    width: int = 1
    conv: str = "_conv"
    norm: str = "_batch_norm"
    fc: str = "head.fc"
    parameter: Callable[[str, str, int], str] | None = None

    def sizes(self, theirs: Mapping[str, Any]) -> Sizes:
        """Infers the sizes from the tensors of a file, which may lack some or have other shapes."""
        stem = shape_of(theirs.get(f"{self.stem}.{self.conv}.weight"))
        fc = shape_of(theirs.get(f"{self.fc}.weight")) or shape_of(theirs.get(f"{self.fc}.bias"))
        attention = shape_of(theirs.get(_PADDLE_ATTENTION))
        width = self.width * stem[0] if stem else 0
        return width or 64, (fc[-1] if fc else 0) or None, attention[-1] if attention else None

    def tensors(self, shapes: Shapes) -> Iterator[PaddleTensor]:
        """Yields every tensor that is needed, in the order of PaddleVideo's state dict."""
        named = self.parameter or (lambda layer, part, number: "")
        layers = [(paddle, ours) for paddle, ours in self.layers(shapes) if _is_there(ours, shapes)]
        for number, (paddle, ours) in enumerate(layers):
            if f"{ours}.kernel" in shapes:  # without a batch norm
                yield _tensor(f"{paddle}.weight", f"{ours}.kernel", shapes)
                if f"{ours}.bias" in shapes:
                    yield _tensor(f"{paddle}.bias", f"{ours}.bias", shapes)
                continue
            name = f"{paddle}.{self.conv}.weight"
            yield _tensor(name, f"{ours}.conv.kernel", shapes, named(paddle, "kernel", number))
            for leaf, theirs in _NORM.items():
                name = f"{paddle}.{self.norm}.{theirs}"
                yield _tensor(name, f"{ours}.norm.{leaf}", shapes, named(paddle, leaf, number))
        of_fc = ("fc_0.w_0", "fc_0.b_0") if self.parameter else ("", "")
        if CLASSIFIER in shapes:
            yield _tensor(f"{self.fc}.weight", CLASSIFIER, shapes, of_fc[0])
            yield _tensor(f"{self.fc}.bias", CLASSIFIER_BIAS, shapes, of_fc[1])
        if _ATTENTION in shapes:
            yield _tensor(_PADDLE_ATTENTION, _ATTENTION, shapes)
            bias = _ATTENTION.replace("kernel", "bias")
            yield _tensor(_PADDLE_ATTENTION.replace("weight", "bias"), bias, shapes)


def _is_there(layer: str, shapes: Shapes) -> bool:
    return f"{layer}.conv.kernel" in shapes or f"{layer}.kernel" in shapes


def _tensor(paddle: str, ours: str, shapes: Shapes, parameter: str = "") -> PaddleTensor:
    ours_is = shapes[ours]
    shape = (1, 1, *ours_is) if ".excite." in ours and len(ours_is) == 2 else ours_is
    return PaddleTensor(paddle, ours, to_oihw(shape), ours_is, parameter or paddle)


def paddle_tensors(
    backbone: str, width: int, num_classes: int | None, num_segments: int | None = None
) -> list[PaddleTensor]:
    """Returns every tensor of a network, in the order of PaddleVideo's state dict."""
    if backbone in BLOCKS:
        shapes = _resnet_shapes(BLOCKS[backbone], width, num_classes)
    else:
        shapes = network_shapes(backbone, width, num_classes, num_segments or 8)
    return list(NETWORKS[backbone].tensors(shapes))


def _resnet_shapes(blocks: tuple[int, ...], width: int, num_classes: int | None) -> Shapes:
    """Like `network_shapes`, for a ResNet, but without the slow import of jax."""
    kernels = {"backbone.stem": (7, 7, 3, width)}
    features = width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        for index in range(count):
            block = f"backbone.stages.{stage}.{index}"
            kernels[f"{block}.conv1"] = (1, 1, features, inner)
            kernels[f"{block}.conv2"] = (3, 3, inner, inner)
            kernels[f"{block}.conv3"] = (1, 1, inner, 4 * inner)
            if index == 0:
                kernels[f"{block}.shortcut"] = (1, 1, features, 4 * inner)
            features = 4 * inner
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, shape in kernels.items():
        shapes[f"{layer}.conv.kernel"] = shape
        shapes |= {f"{layer}.norm.{leaf}": shape[-1:] for leaf in _NORM}
    if num_classes is not None:
        shapes |= {CLASSIFIER: (features, num_classes), CLASSIFIER_BIAS: (num_classes,)}
    return shapes


def _resnet_tsm(ours: Collection[str]) -> Iterator[tuple[str, str]]:
    """Names blocks `2a`, `2b`, ..., but those of a long third stage `4a`, `4b1`, `4b2`, ..."""
    yield "backbone.conv", "backbone.stem"
    blocks = _blocks(ours)
    is_long = (2, 6) in blocks
    for stage, index in blocks:
        letter = f"b{index}" if stage == 2 and is_long and index > 0 else "abcdefgh"[index]
        yield from _bottleneck(f"backbone.res{stage + 2}{letter}", stage, index)


def _resnet_vd(ours: Collection[str]) -> Iterator[tuple[str, str]]:
    for index in range(3):
        yield f"backbone.conv1_{index + 1}", f"backbone.stem.{index}"
    for stage, index in _blocks(ours):
        yield from _bottleneck(f"backbone.bb_{stage}_{index}", stage, index)


def _bottleneck(block: str, stage: int, index: int) -> Iterator[tuple[str, str]]:
    own = f"backbone.stages.{stage}.{index}"
    yield f"{block}.conv0", f"{own}.conv1"
    yield f"{block}.conv1", f"{own}.conv2"
    yield f"{block}.conv2", f"{own}.conv3"
    yield f"{block}.short", f"{own}.shortcut"


def _mobilenet_v2(ours: Collection[str]) -> Iterator[tuple[str, str]]:
    yield "backbone.conv1", "backbone.stem"
    block = 0
    for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1), start=2):
        for index in range(1, blocks + 1):
            name = "_first_block" if index == 1 else f"conv{stage}_{index}"
            for paddle, own in (
                ("_expand_conv", "expand"),
                ("_bottleneck_conv", "depthwise"),
                ("_linear_conv", "project"),
            ):
                yield f"backbone.conv{stage}.{name}.{paddle}", f"backbone.blocks.{block}.{own}"
            block += 1
    yield "backbone.conv9", "backbone.last"


def _pplcnet_v2(ours: Collection[str]) -> Iterator[tuple[str, str]]:
    yield "backbone.stem.0", "backbone.stem.0"
    blocks = [f"backbone.stages.{stage}.{index}" for stage, index in _blocks(ours)]
    for name in ("backbone.stem.1", *blocks):
        for branch in range(3):
            yield f"{name}.dw_conv_list.{branch}", f"{name}.depthwise.branches.{branch}"
        yield f"{name}.dw_conv", f"{name}.depthwise"
        yield f"{name}.se.conv1", f"{name}.excite.reduce"
        yield f"{name}.se.conv2", f"{name}.excite.expand"
        yield f"{name}.pw_conv_1", f"{name}.reduce"
        split = f"{name}.reduce.conv.kernel" in ours
        yield f"{name}.pw_conv_2" if split else f"{name}.pw_conv", f"{name}.pointwise"
    yield "backbone.last_conv", "backbone.last"


def _blocks(ours: Collection[str]) -> list[tuple[int, int]]:
    """Returns the stage and index of every block, sorted."""
    paths = (name.split(".") for name in ours if name.startswith("backbone.stages."))
    return sorted({(int(stage), int(index)) for _, _, stage, index, *_ in paths})


_BRANCHES = {"conv0": "branch2a", "conv1": "branch2b", "conv2": "branch2c", "short": "branch1"}


def _resnet_parameter(layer: str, part: str, number: int) -> str:
    """Returns a parameter name of PaddleVideo's ResNetTSM; moving averages are numbered."""
    if part in ("mean", "var"):
        return f"batch_norm2d_{number}.w_{0 if part == 'mean' else 1}"
    _, block, *conv = layer.split(".")
    name = f"{block}_{_BRANCHES[conv[0]]}" if conv else "conv1"
    if part == "kernel":
        return f"{name}_weights"
    norm = name.replace("res", "bn") if conv else "bn_conv1"
    return f"{norm}_{'scale' if part == 'scale' else 'offset'}"


def is_sum_of_branches(name: str) -> bool:
    """Returns whether a tensor of PP-LCNetV2 is the sum of its training branches, so redundant."""
    return _SUM.fullmatch(name) is not None


def sums_of_branches(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fuses the branches of PP-LCNetV2 into the convolutions that `is_sum_of_branches` matches."""
    sums: dict[str, np.ndarray] = {}
    for name in tensors:
        block, found, branch = name.partition(".dw_conv_list.")
        if not found or not branch.endswith(".conv.weight"):
            continue
        layer = name.removesuffix(".conv.weight")
        scale, bias, mean, variance = (
            tensors[f"{layer}.bn.{leaf}"].astype(np.float64) for leaf in _NORM.values()
        )
        multiplier = scale / np.sqrt(variance + _EPSILON)
        kernel = tensors[name] * multiplier[:, None, None, None]
        weight, total = f"{block}.dw_conv.weight", f"{block}.dw_conv.bias"
        if weight in sums:  # the first branch has the largest kernel
            rim = (sums[weight].shape[2] - kernel.shape[2]) // 2
            kernel = np.pad(kernel, ((0, 0), (0, 0), (rim, rim), (rim, rim)))
        sums[weight] = sums.get(weight, 0) + kernel
        sums[total] = sums.get(total, 0) + bias - mean * multiplier
    return {name: value.astype(np.float32) for name, value in sums.items()}


_VD = PaddleNetwork(
    marks=("backbone.bb_0_0.",),
    stem="backbone.conv1_3",
    layers=_resnet_vd,
)
_LCNET = PaddleNetwork(
    marks=("backbone.stages.0.0.dw_conv.",),
    stem="backbone.stem.0",
    width=2,
    layers=_pplcnet_v2,
    conv="conv",
    norm="bn",
    fc="backbone.fc",
)
_TSM = PaddleNetwork(
    marks=("",),
    stem="backbone.conv",
    layers=_resnet_tsm,
    parameter=_resnet_parameter,
)

# By backbone. The first network with a mark in the file is used; the last one matches any file.
NETWORKS = {
    "resnet101_vd": replace(_VD, marks=("backbone.bb_2_6.",)),
    "resnet50_vd": _VD,
    "mobilenet_v2_paddle": PaddleNetwork(
        marks=("backbone.conv2._first_block.",),
        stem="backbone.conv1",
        width=2,
        layers=_mobilenet_v2,
        fc="backbone.out",
    ),
    "pplcnet_v2_attention": replace(_LCNET, marks=("backbone.global_attention.",)),
    "pplcnet_v2": _LCNET,
    "resnet152": replace(_TSM, marks=("backbone.res3e.", "backbone.res4b23.")),
    "resnet101": replace(_TSM, marks=("backbone.res4b1.",)),
    "resnet50": _TSM,
}
