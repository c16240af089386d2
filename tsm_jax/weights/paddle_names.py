"""From the tensors of a PaddleVideo file to our weights, and back.

Convolution kernels are OIHW there and HWIO here; the fully connected layer is (in, out) in both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tsm_jax.errors import UserError, naming
from tsm_jax.models.architecture import Architecture
from tsm_jax.weights.paddle_networks import (
    BLOCKS,
    NETWORKS,
    PaddleTensor,
    is_sum_of_branches,
    paddle_tensors,
    sums_of_branches,
)
from tsm_jax.weights.tensor_checks import (
    HWIO,
    OIHW,
    check_fit,
    check_sound,
    dtype_name,
    float32,
)

_IMAGENET_HEAD = ("out.weight", "out.bias", "fc.weight", "fc.bias")
# Names of parts inside of a backbone, for files that leave `backbone.` out.
_PART = re.compile(
    r"(conv\d*(_\d)?|res\d\w+|bb_\d+_\d+|stem|stages|last_conv|global_attention|out|fc)\."
)


@dataclass(frozen=True)
class PaddleArchitecture:
    """The network that a file's tensors belong to, and what the file was like.

    Attributes:
        backbone, width: as in `config.model`; the width is 64 in every published file.
        num_classes: None for a file without a head, as the ImageNet ones.
        num_segments: T, where the tensors tell it: those of an attention over time.
        dtypes: number of tensors of each dtype in the file; `bfloat16` for Paddle's uint16.
        ignored: entries that were left aside: the 1000-way classifier of an ImageNet file
            (`out.weight`, `out.bias`), the teacher of a distillation, what PP-LCNetV2's branches
            make up for.
    """

    backbone: str
    width: int
    num_classes: int | None
    num_segments: int | None = None
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
        source: what error messages begin with.

    Returns:
        Weights by our names, float32 and contiguous, and the architecture that the shapes tell.
        The direction and the fraction of the shift cannot be told from them.

    Raises:
        UserError: a tensor is missing, unexpected, of another shape or not finite, or the file
            is of another model.
    """
    with naming(source):
        found, ignored = _normalised(tensors)
        _refuse_other_models(found)
        backbone = next(
            name
            for name, network in NETWORKS.items()
            if any(tensor.startswith(network.marks) for tensor in found)
        )
        sizes = NETWORKS[backbone].sizes(found)
        expected = paddle_tensors(backbone, *sizes)
        check_fit(
            {tensor.paddle: tensor.shape for tensor in expected}, found, f"not {_network(backbone)}"
        )
        dtypes = Counter(dtype_name(found[tensor.paddle]) for tensor in expected)
        weights = {tensor.ours: _to_ours(found[tensor.paddle], tensor) for tensor in expected}
        check_sound(weights, {tensor.ours: tensor.paddle for tensor in expected})
        return weights, PaddleArchitecture(backbone, *sizes, dict(dtypes), tuple(ignored))


def to_paddle(
    weights: Mapping[str, np.ndarray], architecture: Architecture | PaddleArchitecture
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The inverse of `from_paddle`.

    Returns:
        Float32 tensors by PaddleVideo name, in its order, and Paddle's parameter name of each but
        those that are sums of branches.

    Raises:
        UserError: the weights are not of this architecture, or PaddleVideo has no such network.
    """
    backbone = architecture.backbone
    if backbone not in NETWORKS:
        names = ", ".join(dict.fromkeys((*BLOCKS, *NETWORKS)))
        raise UserError(f"PaddleVideo has no TSM of {backbone}; it has {names}")
    expected = paddle_tensors(
        backbone, architecture.width, architecture.num_classes, architecture.num_segments
    )
    shapes = {tensor.ours: tensor.our_shape for tensor in expected}
    check_fit(shapes, weights, f"weights of a {backbone}: not {_network(backbone)}")
    found = {tensor.paddle: _to_theirs(weights[tensor.ours], tensor) for tensor in expected}
    parameter_names = {tensor.paddle: tensor.parameter for tensor in expected}
    return found | sums_of_branches(found), parameter_names


def _network(backbone: str) -> str:
    return "a TSM ResNet" if backbone in BLOCKS else f"a PP-TSM of {backbone}"


def _refuse_other_models(tensors: Mapping[str, Any]) -> None:
    if not tensors:
        raise UserError("holds no tensors; is it the .pdparams of a whole model?")
    for name in tensors:
        if re.search(r"(^|\.)blocks\.\d+\.(expand|bottleneck|linear)_conv\.", name):
            raise UserError(
                f"is a PP-TSM of MobileNetV3 ({name!a}), a network that does not exist here; take"
                " the MobileNetV2 or the PP-LCNetV2 (PP-TSMv2)"
            )
        if "_velocity_" in name or name == "LR_Scheduler":
            raise UserError(f"is an optimizer's state ({name!a}); give the .pdparams beside it")


def _normalised(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tensors under their full PaddleVideo names, and the names of those left aside."""
    role = _chosen_role(tensors)
    own = [name.removeprefix(role) for name in tensors if name.startswith(role)]
    # An ImageNet file, whose parts have neither a name nor a number in front of them. (PP-TSM's
    # MobileNetV2 and PP-LCNetV2 have their classifier for videos in the same place.)
    bare = not any(name.startswith(("backbone.", "head.", "0.", "1.")) for name in own)
    classifies = any("conv2._first_block." in name or "last_conv." in name for name in own)
    found: dict[str, Any] = {}
    ignored = []
    for name, value in tensors.items():
        full = _full_name(name.removeprefix(role)) if name.startswith(role) else ""
        classifier = full.removeprefix("backbone.") in _IMAGENET_HEAD
        if not full or (classifier and (bare or not classifies)) or is_sum_of_branches(full):
            ignored.append(name)
            continue
        if full in found:
            raise UserError(f"holds {full!a} twice, once as {name!a}; remove one")
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
    return f"backbone.{name}" if _PART.match(name) else name


def _to_ours(value: np.ndarray, tensor: PaddleTensor) -> np.ndarray:
    value = value.transpose(HWIO) if value.ndim == 4 else value
    return float32(value).reshape(tensor.our_shape)


def _to_theirs(value: np.ndarray, tensor: PaddleTensor) -> np.ndarray:
    if len(tensor.shape) == 4:
        out, features_in, height, width = tensor.shape
        value = value.reshape(height, width, features_in, out).transpose(OIHW)
    return np.asarray(value, np.float32, order="C")
