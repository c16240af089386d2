"""From the tensors of a PaddleVideo file to our weights, and back.

Convolution kernels are OIHW there and HWIO here; the fully connected layer is (in, out) in both.
PaddleVideo's names come from paddlevideo/modeling/backbones/resnet_tsm.py and heads/tsm_head.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tsm_jax.errors import UserError
from tsm_jax.models.architecture import CLASSIFIER, CLASSIFIER_BIAS
from tsm_jax.weights.tensor_checks import (
    Unfit,
    check_fit,
    check_sound,
    dtype_name,
    float32,
    shape_of,
)

# Blocks per stage of the networks that PaddleVideo has.
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
FC_WEIGHT, FC_BIAS = "head.fc.weight", "head.fc.bias"
_EXPANSION = 4
_NORM = (  # ours, theirs, their parameter
    ("scale", "weight", "{norm}_scale"),
    ("bias", "bias", "{norm}_offset"),
    ("mean", "_mean", "batch_norm2d_{number}.w_0"),
    ("var", "_variance", "batch_norm2d_{number}.w_1"),
)
_IMAGENET_HEAD = ("out.weight", "out.bias")
_STEM = "backbone.conv._conv.weight"
_NETWORK = "a TSM ResNet"


@dataclass(frozen=True)
class PaddleArchitecture:
    """The network that a file's tensors belong to, and what the file was like.

    Attributes:
        backbone: resnet50, resnet101 or resnet152.
        width: channels of the stem, 64 in every published file.
        num_classes: None for a file without a head, as the ImageNet one.
        dtypes: number of tensors of each dtype in the file; `bfloat16` for Paddle's uint16.
        ignored: entries that were left aside: the 1000-way classifier of an ImageNet file
            (`out.weight`, `out.bias`), the teacher of a distillation.
    """

    backbone: str
    width: int
    num_classes: int | None
    dtypes: Mapping[str, int] = field(default_factory=dict, compare=False)
    ignored: tuple[str, ...] = field(default=(), compare=False)


def from_paddle(
    tensors: Mapping[str, Any], source: str = "these tensors"
) -> tuple[dict[str, np.ndarray], PaddleArchitecture]:
    """Our weights from the tensors of a `.pdparams`.

    Keys may lack `backbone.` (ImageNet files) or begin with `Student.`, `Student.0.`, or `0.`
    (distillation: the student is taken, the teacher ignored; without a student, the teacher).

    Args:
        tensors: by PaddleVideo name. float16, float64 and Paddle's bfloat16 (uint16) are turned
            into float32.
        source: what error messages begin with: the file's name.

    Returns:
        Weights by our names, float32 and contiguous, and the architecture that the shapes tell.
        The direction and the fraction of the shift cannot be told from them.

    Raises:
        UserError: a tensor is missing, unexpected, of another shape or not finite, or the file
            is of another model.
    """
    try:
        return _from_paddle(tensors)
    except Unfit as reason:
        raise UserError(f"{source}: {reason}") from None


def to_paddle(weights: Mapping[str, np.ndarray], backbone: str) -> dict[str, np.ndarray]:
    """The inverse of `from_paddle`: float32 tensors by PaddleVideo name, in its order.

    Raises:
        UserError: the weights are not those of this backbone, or PaddleVideo has none.
    """
    expected = list(paddle_tensors(*_dimensions(weights, backbone)))
    shapes = {tensor.ours: _our_shape(tensor.shape) for tensor in expected}
    try:
        check_fit(shapes, weights, _NETWORK)
    except Unfit as reason:
        raise UserError(f"weights of a {backbone}: {reason}") from None
    return {tensor.paddle: _to_theirs(weights[tensor.ours]) for tensor in expected}


def parameter_names(weights: Mapping[str, np.ndarray], backbone: str) -> dict[str, str]:
    """Paddle's parameter name of each tensor: the `StructuredToParameterName@@` of PaddleVideo.

    As PaddleVideo's ResNetTSM and TSMHead give them; moving averages get a running number.
    """
    return {
        tensor.paddle: tensor.parameter
        for tensor in paddle_tensors(*_dimensions(weights, backbone))
    }


def _dimensions(weights: Mapping[str, np.ndarray], backbone: str) -> tuple[str, int, int | None]:
    if backbone not in BLOCKS:
        raise UserError(f"PaddleVideo has no TSM of {backbone}; it has {', '.join(BLOCKS)}")
    stem = shape_of(weights.get("backbone.stem.conv.kernel"))
    fc = shape_of(weights.get(CLASSIFIER))
    return backbone, stem[-1] if stem else 64, fc[-1] if fc else None


def _from_paddle(tensors: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], PaddleArchitecture]:
    found, ignored = _normalised(tensors)
    _refuse_other_models(found)
    dimensions = _inferred_dimensions(found)
    expected = list(paddle_tensors(*dimensions))
    check_fit({tensor.paddle: tensor.shape for tensor in expected}, found, _NETWORK)
    dtypes = Counter(dtype_name(found[tensor.paddle]) for tensor in expected)
    weights = {tensor.ours: _to_ours(found[tensor.paddle]) for tensor in expected}
    check_sound(weights, {tensor.ours: tensor.paddle for tensor in expected})
    return weights, PaddleArchitecture(*dimensions, dict(dtypes), tuple(ignored))


def _refuse_other_models(tensors: Mapping[str, Any]) -> None:
    if not tensors:
        raise Unfit("holds no tensors; is it the .pdparams of a whole model?")
    for name in tensors:
        if re.search(r"(^|\.)(bb_\d+_\d+|conv1_[123])\.", name):
            raise Unfit(
                f"is a PP-TSM file ({name!a}), another network that is not supported;"
                " give the weights of TSM"
            )
        if "_velocity_" in name or name == "LR_Scheduler":
            raise Unfit(f"is an optimizer's state ({name!a}); give the .pdparams beside it")


def _normalised(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tensors under their full PaddleVideo names, and the names of those left aside."""
    role = _chosen_role(tensors)
    found: dict[str, Any] = {}
    ignored = []
    for name, value in tensors.items():
        if not name.startswith(role) or name.removeprefix("backbone.") in _IMAGENET_HEAD:
            ignored.append(name)
            continue
        full = _full_name(name.removeprefix(role))
        if full in found:
            raise Unfit(f"holds {full!a} twice, once as {name!a}; remove one")
        found[full] = value
    return found, ignored


def _chosen_role(names: Iterable[str]) -> str:
    """The prefix of the network to take from a distillation's file; none in any other."""
    roots = {name.partition(".")[0] for name in names}
    return "Student." if "Student" in roots else "Teacher." if "Teacher" in roots else ""


def _full_name(name: str) -> str:
    """With `backbone.` or `head.` in front, whether the file numbers its parts or names them."""
    if name.startswith(("backbone.", "head.")):
        return name
    if name.startswith("1."):
        return f"head.{name[2:]}"
    name = name.removeprefix("0.")
    return f"backbone.{name}" if re.match(r"(conv|res\d\w+)\.", name) else name


def _inferred_dimensions(found: Mapping[str, Any]) -> tuple[str, int, int | None]:
    """Backbone, width and number of classes: from the blocks present, the stem and the head."""
    backbone = "resnet50"
    if "backbone.res4b1.conv0._conv.weight" in found:
        is_152 = any(name.startswith(("backbone.res3e.", "backbone.res4b23.")) for name in found)
        backbone = "resnet152" if is_152 else "resnet101"
    stem, fc = shape_of(found.get(_STEM)), shape_of(found.get(FC_WEIGHT))
    bias = shape_of(found.get(FC_BIAS))
    width = stem[0] if stem and stem[0] > 0 else 64
    num_classes = fc[-1] if fc else bias[-1] if bias else None
    return backbone, width, num_classes or None


def _to_ours(value: np.ndarray) -> np.ndarray:
    if value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)  # OIHW to HWIO
    return float32(value)


def _to_theirs(value: np.ndarray) -> np.ndarray:
    if value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)  # HWIO to OIHW
    return np.asarray(value, np.float32, order="C")


def _our_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 4:
        return shape
    out, features_in, height, width = shape
    return height, width, features_in, out


# Every tensor of PaddleVideo's TSM: its names there and here.


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
        for ours, paddle, parameter in _NORM:
            yield PaddleTensor(
                f"{layer.paddle}._batch_norm.{paddle}",
                f"{layer.ours}.norm.{ours}",
                layer.shape[:1],
                parameter.format(norm=layer.norm_parameter, number=number),
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
