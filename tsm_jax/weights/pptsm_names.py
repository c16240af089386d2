"""PP-TSM's tensors: their names in PaddleVideo and here; their shapes are those of our networks.

From paddlevideo/modeling/backbones/resnet_tweaks_tsm.py, pptsm_mv2.py and pptsm_v2.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tsm_jax.models.architecture import CLASSIFIER, CLASSIFIER_BIAS, HEAD, Architecture
from tsm_jax.weights.tensor_checks import shape_of

# The matrix of PP-TSMv2's attention over time, `[T, T]`.
ATTENTION = "backbone.attention.fc.kernel"
_PADDLE_ATTENTION = "backbone.global_attention.fc.weight"

_NORM = {"scale": "weight", "bias": "bias", "mean": "_mean", "var": "_variance"}
_EPSILON = 1e-5
_SUM = re.compile(r"backbone\.stages\.\d+\.\d+\.dw_conv\.(weight|bias)")


class PaddleTensor(NamedTuple):
    """One tensor.

    Attributes:
        paddle: its structured name in PaddleVideo, as `backbone.res2a.conv0._conv.weight`.
        ours: its name here, as `backbone.stages.0.0.conv1.conv.kernel`.
        shape: in a Paddle file; kernels are OIHW.
        parameter: Paddle's own name of the parameter, as `res2a_branch2a_weights`.
        is_matrix: whether it is a matrix here, and a 1x1 kernel there.
    """

    paddle: str
    ours: str
    shape: tuple[int, ...]
    parameter: str
    is_matrix: bool = False

    @property
    def our_shape(self) -> tuple[int, ...]:
        """Kernels are HWIO."""
        if len(self.shape) != 4:
            return self.shape
        out, features_in, height, width = self.shape
        return (features_in, out) if self.is_matrix else (height, width, features_in, out)


@dataclass(frozen=True)
class PaddleNetwork:
    """One of PP-TSM's networks.

    Attributes:
        mark: what the name of one of its tensors begins with, and of no other network's.
        stem, paddle_stem: our name of the first kernel, and Paddle's.
        width: `config.model.width` for each feature of that kernel.
        layers: of our tensors' names; see `_resnet_vd`.
        conv, norm: how Paddle calls the two parts of a layer.
        fc: how it calls the classifier.
    """

    mark: str
    stem: str
    paddle_stem: str
    width: int
    layers: Callable[[Collection[str]], Iterator[tuple[str, str]]]
    conv: str
    norm: str
    fc: str

    def dimensions(
        self, backbone: str, found: Mapping[str, Any]
    ) -> tuple[str, int, int | None, int | None]:
        """Backbone, width, number of classes and of segments of the tensors of a file."""
        stem = shape_of(found.get(self.paddle_stem))
        fc = shape_of(found.get(f"{self.fc}.weight")) or shape_of(found.get(f"{self.fc}.bias"))
        segments = shape_of(found.get(_PADDLE_ATTENTION))
        width = self.width * stem[0] if stem else 64
        return backbone, width, (fc[-1] if fc else 0) or None, segments[-1] if segments else None

    def tensors(
        self, backbone: str, width: int, num_classes: int | None, num_segments: int | None
    ) -> Iterator[PaddleTensor]:
        """Every tensor that counts, in the order of PaddleVideo's state dict."""
        shapes = _shapes(backbone, width, num_classes, num_segments)
        for paddle, ours in self.layers(shapes):
            if f"{ours}.conv.kernel" in shapes:
                name = f"{paddle}.{self.conv}.weight"
                yield _tensor(name, f"{ours}.conv.kernel", shapes)
                for leaf, theirs in _NORM.items():
                    yield _tensor(f"{paddle}.{self.norm}.{theirs}", f"{ours}.norm.{leaf}", shapes)
            elif f"{ours}.kernel" in shapes:  # without a batch norm
                yield _tensor(f"{paddle}.weight", f"{ours}.kernel", shapes)
                if f"{ours}.bias" in shapes:
                    yield _tensor(f"{paddle}.bias", f"{ours}.bias", shapes)
        if num_classes is not None:
            yield _tensor(f"{self.fc}.weight", CLASSIFIER, shapes)
            yield _tensor(f"{self.fc}.bias", CLASSIFIER_BIAS, shapes)
        if num_segments is not None:
            yield _tensor(_PADDLE_ATTENTION, ATTENTION, shapes)
            bias = ATTENTION.replace("kernel", "bias")
            yield _tensor(_PADDLE_ATTENTION.replace("weight", "bias"), bias, shapes)


def _tensor(paddle: str, ours: str, shapes: Mapping[str, tuple[int, ...]]) -> PaddleTensor:
    shape = shapes[ours]
    is_matrix = ".excite." in ours and len(shape) == 2
    if is_matrix:
        shape = (1, 1, *shape)
    if len(shape) == 4:
        shape = tuple(shape[axis] for axis in (3, 2, 0, 1))
    return PaddleTensor(paddle, ours, shape, paddle, is_matrix)


@lru_cache(maxsize=8)
def _shapes(
    backbone: str, width: int, num_classes: int | None, num_segments: int | None
) -> dict[str, tuple[int, ...]]:
    from tsm_jax.models.network import build_network  # late: it brings in jax

    architecture = Architecture(backbone, num_classes or 1, num_segments or 8, width)
    network = build_network(architecture, "float32")
    shapes = {**network.param_shapes, **network.batch_stat_shapes}
    return {n: shape for n, shape in shapes.items() if num_classes or not n.startswith(HEAD)}


def _resnet_vd(ours: Collection[str]) -> Iterator[tuple[str, str]]:
    """Each layer's name in PaddleVideo and here, in its order; some of them no network has."""
    for index in range(3):
        yield f"backbone.conv1_{index + 1}", f"backbone.stem.{index}"
    for stage, index in _blocks(ours):
        for paddle, own in (
            ("conv0", "conv1"),
            ("conv1", "conv2"),
            ("conv2", "conv3"),
            ("short", "shortcut"),
        ):
            yield f"backbone.bb_{stage}_{index}.{paddle}", f"backbone.stages.{stage}.{index}.{own}"


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
    """Stage and index of every block."""
    paths = (name.split(".") for name in ours if name.startswith("backbone.stages."))
    return sorted({(int(stage), int(index)) for _, _, stage, index, *_ in paths})


def network_of(found: Collection[str]) -> str | None:
    """The backbone whose tensors a file has; None if it is none of PP-TSM's."""
    for backbone, network in PPTSM.items():
        if any(name.startswith(network.mark) for name in found):
            return backbone
    return None


def is_sum_of_branches(name: str) -> bool:
    """Whether PP-LCNetV2's training does not need a tensor, because it is made of others."""
    return _SUM.fullmatch(name) is not None


def sums_of_branches(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `is_sum_of_branches` says, from the branches: the one convolution they amount to."""
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
    mark="backbone.bb_0_0.",
    stem="backbone.stem.2.conv.kernel",
    paddle_stem="backbone.conv1_3._conv.weight",
    width=1,
    layers=_resnet_vd,
    conv="_conv",
    norm="_batch_norm",
    fc="head.fc",
)
_LCNET = PaddleNetwork(
    mark="backbone.stages.0.0.dw_conv.",
    stem="backbone.stem.0.conv.kernel",
    paddle_stem="backbone.stem.0.conv.weight",
    width=2,
    layers=_pplcnet_v2,
    conv="conv",
    norm="bn",
    fc="backbone.fc",
)

# By backbone; what has a mark of its own comes first.
PPTSM = {
    "resnet101_vd": replace(_VD, mark="backbone.bb_2_6."),
    "resnet50_vd": _VD,
    "mobilenet_v2_paddle": PaddleNetwork(
        mark="backbone.conv2._first_block.",
        stem="backbone.stem.conv.kernel",
        paddle_stem="backbone.conv1._conv.weight",
        width=2,
        layers=_mobilenet_v2,
        conv="_conv",
        norm="_batch_norm",
        fc="backbone.out",
    ),
    "pplcnet_v2_attention": replace(_LCNET, mark="backbone.global_attention."),
    "pplcnet_v2": _LCNET,
}
