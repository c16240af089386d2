"""Converts the tensors of PaddleVideo files to our weights and back.

Convolution kernels are OIHW in PaddleVideo and HWIO here; fully connected layers are (in, out) in
both.
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
# Names of parts of a backbone, for files that omit `backbone.`.
_PART = re.compile(
    r"(conv\d*(_\d)?|res\d\w+|bb_\d+_\d+|stem|stages|last_conv|global_attention|out|fc)\."
)


@dataclass(frozen=True)
class PaddleArchitecture:
    """The network that a file's tensors belong to, and facts about the file.

    Attributes:
        backbone, width: as in `config.model`; the width is 64 in every published file.
        num_classes: None for a file without a head, such as those for ImageNet.
        num_segments: T if the tensors determine it, as those of an attention over time do.
        dtypes: number of tensors of each dtype in the file; Paddle's uint16 counts as `bfloat16`.
        ignored: names of skipped entries: the 1000-way classifier of an ImageNet file
            (`out.weight`, `out.bias`), the teacher of a distillation, and sums of PP-LCNetV2's
            branches.
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
    """Converts the tensors of a `.pdparams` to our weights.

    Keys may lack `backbone.` (ImageNet files) or begin with `Student.`, `Student.0.`, or `0.`
    (distillation: the student is used and the teacher ignored; without a student, the teacher is
    used).

    Args:
        tensors: by PaddleVideo name; float16, float64 and Paddle's bfloat16 (uint16) are converted
            to float32.
        source: prefix of error messages.

    Returns:
        Weights by our names, float32 and contiguous, and the architecture inferred from the shapes,
        which do not determine the direction and the fraction of the shift.

    Raises:
        UserError: a tensor is missing, unexpected, not finite or has the wrong shape, or the file
            contains another model.
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
        Float32 tensors by PaddleVideo name, in its order, and Paddle's own parameter name of each,
        except for sums of branches.

    Raises:
        UserError: the weights do not fit the architecture, or PaddleVideo has no such network.
    """
    backbone = architecture.backbone
    if backbone not in NETWORKS:
        names = ", ".join(dict.fromkeys((*BLOCKS, *NETWORKS)))
        raise UserError(f"PaddleVideo has no TSM with {backbone}; it has {names}")
    expected = paddle_tensors(
        backbone, architecture.width, architecture.num_classes, architecture.num_segments
    )
    shapes = {tensor.ours: tensor.our_shape for tensor in expected}
    check_fit(shapes, weights, f"weights for {backbone}: not {_network(backbone)}")
    found = {tensor.paddle: _to_theirs(weights[tensor.ours], tensor) for tensor in expected}
    parameter_names = {tensor.paddle: tensor.parameter for tensor in expected}
    return found | sums_of_branches(found), parameter_names


def _network(backbone: str) -> str:
    return "a TSM ResNet" if backbone in BLOCKS else f"a PP-TSM with {backbone}"


def _refuse_other_models(tensors: Mapping[str, Any]) -> None:
    if not tensors:
        raise UserError("contains no tensors; is it the .pdparams of a whole model?")
    for name in tensors:
        if re.search(r"(^|\.)blocks\.\d+\.(expand|bottleneck|linear)_conv\.", name):
            raise UserError(
                f"is a PP-TSM with MobileNetV3 ({name!a}), which is not supported; use the one with"
                " MobileNetV2 or PP-LCNetV2 (PP-TSMv2)"
            )
        if "_velocity_" in name or name == "LR_Scheduler":
            raise UserError(f"is an optimizer state ({name!a}); give the .pdparams next to it")


def _normalised(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the tensors by their full PaddleVideo names, and the names of ignored ones."""
    role = _chosen_role(tensors)
    own = [name.removeprefix(role) for name in tensors if name.startswith(role)]
    # In ImageNet files, parts have no prefix (neither a name nor a number). The video classifier of
    # PP-TSM's MobileNetV2 and PP-LCNetV2 is in the same place as theirs.
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
            raise UserError(f"contains {full!a} twice, once as {name!a}; remove one")
        found[full] = value
    return found, ignored


def _chosen_role(names: Iterable[str]) -> str:
    """Returns the prefix of the network to use from a distillation file, else an empty string."""
    roots = {name.partition(".")[0] for name in names}
    return "Student." if "Student" in roots else "Teacher." if "Teacher" in roots else ""


def _full_name(name: str) -> str:
    """Returns a name with the prefix `backbone.` or `head.`, which files may number or omit."""
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
