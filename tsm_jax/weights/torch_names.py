"""Converts the tensors of PyTorch projects to our weights and back.

The names are those of MIT's temporal-shift-module (ops/models.py, archs/mobilenet_v2.py,
online_demo/mobilenet_v2_tsm.py), mmaction2 (models/backbones) and torchvision, whose names timm's
ResNets share. Convolution kernels are OIHW there and HWIO here; fully connected layers are
(out, in) there and (in, out) here. MIT and mmaction2 wrap the module after a shift: its tensors
have `.net.` in their names, which shows where the network shifts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tsm_jax.errors import UserError, naming
from tsm_jax.models.architecture import HEAD, SHIFT_EVERY, Architecture
from tsm_jax.weights.tensor_checks import (
    HWIO,
    OIHW,
    check_fit,
    check_shift,
    check_sound,
    float32,
    listed,
    network_shapes,
    shape_of,
    to_oihw,
)

MIT, MIT_ONLINE, MMACTION2, IMAGE = "MIT", "MIT's online demo", "mmaction2", "torchvision or timm"
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
MOBILENET = "mobilenet_v2"
# The step counter of batch norm, which no network reads and a file may lack.
COUNTER = "num_batches_tracked"

_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_STAGES = (1, 2, 3, 4, 3, 3, 1)  # numbers of consecutive MobileNetV2 blocks of equal width


class _Names(NamedTuple):
    """Another project's names for the parts of a network.

    Attributes:
        prefix: prefix of all names except the classifier's.
        classifier: name of the fully connected layer.
        parts: function from the path of one of our `ConvNorm`s to the names of its convolution and
            its batch norm.
        wraps_norm: whether the module wrapped by a shift includes the batch norm.
    """

    prefix: str
    classifier: str
    parts: Callable[[list[str]], tuple[str, str]]
    wraps_norm: bool = False


def _resnet(path: list[str]) -> tuple[str, str]:
    match path:
        case ["stem"]:
            return "conv1", "bn1"
        case ["stages", stage, block, "shortcut"]:
            name = f"layer{int(stage) + 1}.{block}.downsample"
            return f"{name}.0", f"{name}.1"
    _, stage, block, conv = path
    name = f"layer{int(stage) + 1}.{block}"
    return f"{name}.{conv}", f"{name}.{conv.replace('conv', 'bn')}"


def _resnet_mmaction2(path: list[str]) -> tuple[str, str]:
    name = _resnet(path)[0].removesuffix(".0") if path[-1] == "shortcut" else _resnet(path)[0]
    return f"{name}.conv", f"{name}.bn"


def _mobilenet(path: list[str]) -> tuple[str, str]:
    block, place = _feature(path)
    name = f"features.{block}"
    if block in (0, 18):
        return f"{name}.0", f"{name}.1"
    if path[-1] == "project":
        return f"{name}.conv.{place}", f"{name}.conv.{place + 1}"
    return f"{name}.conv.{place}.0", f"{name}.conv.{place}.1"


def _mobilenet_mit(path: list[str]) -> tuple[str, str]:
    block, place = _feature(path)
    if block in (0, 18):
        return _mobilenet(path)
    return f"features.{block}.conv.{3 * place}", f"features.{block}.conv.{3 * place + 1}"


def _mobilenet_mmaction2(path: list[str]) -> tuple[str, str]:
    block, place = _feature(path)
    if block in (0, 18):
        name = "conv1" if block == 0 else "conv2"
    else:
        stage, index = _place_in_stage(block - 1)
        name = f"layer{stage + 1}.{index}.conv.{place}"
    return f"{name}.conv", f"{name}.bn"


def _feature(path: list[str]) -> tuple[int, int]:
    """Returns the index in torchvision's `features`, and the index of the convolution in it."""
    match path:
        case ["stem"]:
            return 0, 0
        case ["last"]:
            return 18, 0
    block = int(path[1])
    # The first block does not expand.
    return block + 1, ("expand", "depthwise", "project").index(path[2]) - (block == 0)


def _place_in_stage(block: int) -> tuple[int, int]:
    stage = 0
    while block >= _STAGES[stage]:
        block -= _STAGES[stage]
        stage += 1
    return stage, block


_NAMES: dict[tuple[str, bool], _Names] = {  # by family and whether the backbone is MobileNetV2
    (MIT, False): _Names("base_model.", "new_fc", _resnet),
    (MIT, True): _Names("base_model.", "new_fc", _mobilenet_mit),
    (MIT_ONLINE, True): _Names("", "classifier", _mobilenet_mit),
    (MMACTION2, False): _Names("backbone.", "cls_head.fc_cls", _resnet_mmaction2),
    (MMACTION2, True): _Names("backbone.", "cls_head.fc_cls", _mobilenet_mmaction2, True),
    (IMAGE, False): _Names("", "fc", _resnet),
    (IMAGE, True): _Names("", "classifier.1", _mobilenet),
}
_SHIFTS = {MIT: "future_first", MMACTION2: "future_first", MIT_ONLINE: "past_only", IMAGE: "none"}

# Checked in order; the first match decides.
_FAMILIES = {
    MIT: r"^(base_model|new_fc)\.",
    MMACTION2: r"^cls_head\.|^backbone\.(conv1|layer\d\.\d+\.conv\d?(\.\d)?)\.(net\.)?(conv|bn)\.",
    MIT_ONLINE: r"^features\.1\.conv\.0\.weight$",
    IMAGE: r"^(conv1|features\.0\.0)\.weight$",
}

# Unsupported parts of networks, by patterns of their tensor names.
_UNSUPPORTED = {
    r"\.nl\.|\.non_local_block\.": "non-local blocks",
    r"^(base_model|backbone)\.layer\d\.net\.": "temporal pooling (--temporal_pool)",
    r"\.layer\d\.\d+\.net\.": "a shift of whole blocks (--shift_place block)",
    r"inception_|conv1_7x7_s2": "a BNInception",
    r"\bstage\d\.|branch_": "a MobileOne",
    r"^stages\.|^stem\.|^conv1\.\d|\.se\.": "a timm variant",
}


@dataclass(frozen=True)
class TorchNetwork:
    """The network that a file's tensors belong to.

    Attributes:
        family: `MIT`, `MIT_ONLINE`, `MMACTION2` or `IMAGE`.
        num_classes: None for a network without a classifier.
        shift, shift_every: as in `Architecture`.
        shifted: number of blocks with a shift.
    """

    family: str
    backbone: str
    width: int
    num_classes: int | None
    shift: str
    shift_every: int
    shifted: int


def from_torch(
    tensors: Mapping[str, Any], source: str = "these tensors"
) -> tuple[dict[str, np.ndarray], TorchNetwork]:
    """Converts the tensors of a state dict to our weights.

    Args:
        tensors: by their names; float16 and float64 are converted to float32.
        source: prefix of error messages.

    Returns:
        Weights by our names, float32 and contiguous, and the network that they belong to.

    Raises:
        UserError: a tensor is missing, unexpected, not finite or has the wrong shape, or the
            network is not supported.
    """
    with naming(source):
        return _from_torch(tensors)


def to_torch(
    weights: Mapping[str, np.ndarray], architecture: Architecture, family: str
) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`; batch-norm step counters are zero.

    Raises:
        UserError: the project has no such network, or the weights do not fit the architecture.
    """
    backbone = architecture.backbone
    is_known = backbone in (*RESNETS, MOBILENET)
    if not is_known or (family, backbone == MOBILENET) not in _NAMES:
        raise UserError(f"{family} has no {architecture}")
    if architecture.shift != "none":
        check_shift(
            architecture,
            family,
            shift=_SHIFTS[family],
            shift_fraction="1/8",
            shift_every=2 if backbone in ("resnet101", "resnet152") else 1,
        )
    expected = network_shapes(backbone, architecture.width, architecture.num_classes)
    check_fit(expected, weights, f"the weights do not fit {architecture}")
    every = 0 if architecture.shift in ("none", "past_only") else architecture.shift_every
    wrapped = list(_wrapped(family, backbone, expected, every))
    prefix = "module." if family == MIT else ""  # added by MIT's use of DataParallel
    found: dict[str, np.ndarray] = {}
    for ours in expected:
        theirs = _their_name(family, backbone, ours)
        for module in wrapped:
            if theirs.startswith(module):
                theirs = f"{module}net.{theirs.removeprefix(module)}"
        found[prefix + theirs] = np.ascontiguousarray(_transposed(weights[ours], OIHW))
        if ours.endswith("norm.var"):
            counter = theirs.removesuffix(_NORM["var"]) + COUNTER
            found[prefix + counter] = np.zeros((), np.int64)
    return found


def _from_torch(tensors: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], TorchNetwork]:
    tensors = {name: value for name, value in tensors.items() if isinstance(value, np.ndarray)}
    if tensors and all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    if not tensors:
        raise UserError("it contains no named tensors")
    for pattern, part in _UNSUPPORTED.items():
        if found := [name for name in tensors if re.search(pattern, name)]:
            raise UserError(f"it contains {part}, which is not supported ({listed(found[:1])})")
    family, backbone = _recognised(tensors)
    names = _NAMES[family, backbone == MOBILENET]
    found, wrapped = {}, set()
    for name, value in tensors.items():
        if name.endswith(f".{COUNTER}"):
            continue
        name = re.sub(r"^base_model\.(fc|classifier)\.(?=weight|bias)", "new_fc.", name)
        before, net, after = name.partition(".net.")
        if net:
            wrapped.add(f"{before}.")
        name = f"{before}.{after}" if net else name
        if name in found:
            raise UserError(f"it contains {listed([name])} twice, in two spellings")
        found[name] = value.astype(np.int32) if value.dtype == np.uint16 else value
    stem = shape_of(found.get(_their_name(family, backbone, "backbone.stem.conv.kernel")))
    fc = shape_of(found.get(f"{names.classifier}.weight"))
    if stem[1:2] == (10,):
        raise UserError("it is for optical flow (10 input channels), which is not supported")
    width = _width(family, backbone, found)
    num_classes = fc[0] if fc else None
    ours = network_shapes(backbone, width, num_classes)
    theirs = {name: _their_name(family, backbone, name) for name in ours}
    shapes = {
        theirs[name]: shape[::-1] if len(shape) == 2 else to_oihw(shape)
        for name, shape in ours.items()
    }
    check_fit(shapes, found, f"not {backbone} of {family}")
    network = TorchNetwork(
        family, backbone, width, num_classes, *_shift(family, backbone, ours, wrapped), len(wrapped)
    )
    weights = {name: float32(_transposed(found[theirs[name]], HWIO)) for name in ours}
    check_sound(weights, theirs)
    return weights, network


def _recognised(names: Iterable[str]) -> tuple[str, str]:
    """Returns family and backbone, or the most likely ones if the file lacks tensors."""
    lines = "\n".join(sorted(names))
    for family, pattern in _FAMILIES.items():
        if re.search(pattern, lines, re.MULTILINE):
            return family, _backbone(lines)
    if re.search(r"^backbone\.(stem|stages|blocks)\.", lines, re.MULTILINE):
        raise UserError("it has tsm_jax's own tensor names: give the folder that contains it")
    raise UserError(
        "its tensor names are not those of a ResNet or MobileNetV2 of MIT, mmaction2, torchvision"
        f" or timm: {listed(lines.splitlines())}"
    )


def _backbone(names: str) -> str:
    if re.search(r"features\.\d|^backbone\.layer\d\.\d+\.conv\.\d", names, re.MULTILINE):
        return MOBILENET
    is_bottleneck = "layer1.0.conv3." in names
    if "layer3.23." in names or (is_bottleneck and "layer2.4." in names):
        return "resnet152"
    if "layer3.6." in names:
        return "resnet101"
    if is_bottleneck:
        return "resnet50"
    return "resnet34" if "layer1.2." in names else "resnet18"


def _width(family: str, backbone: str, found: Mapping[str, Any]) -> int:
    """Infers the width from the stem; for MobileNetV2, which rounds there, from the last block.

    The last block of MobileNetV2 has 5 x width channels.
    """
    last = "blocks.16.project" if backbone == MOBILENET else "stem"
    shape = shape_of(found.get(_their_name(family, backbone, f"backbone.{last}.conv.kernel")))
    return (shape[0] // (5 if backbone == MOBILENET else 1) if shape else 0) or 64


def _shift(family: str, backbone: str, ours: Iterable[str], wrapped: set[str]) -> tuple[str, int]:
    """Infers `shift` and `shift_every` from the wrapped modules."""
    if not wrapped:
        return ("past_only" if family == MIT_ONLINE else "none"), 1
    patterns = {every: set(_wrapped(family, backbone, ours, every)) for every in SHIFT_EVERY}
    for every, expected in patterns.items():
        if wrapped == expected and _SHIFTS[family] == "future_first":
            return "future_first", every
    nearest = min(patterns.values(), key=lambda expected: len(wrapped ^ expected))
    raise UserError(
        f"its blocks with a shift are not those of {backbone} of {family}:"
        f" missing {listed(sorted(nearest - wrapped)) or 'none'};"
        f" unexpected {listed(sorted(wrapped - nearest)) or 'none'}"
    )


def _wrapped(family: str, backbone: str, ours: Iterable[str], every: int) -> Iterator[str]:
    """Yields name prefixes of the modules after a shift, if every n-th block shifts."""
    names = _NAMES[family, backbone == MOBILENET]
    for name in ours if every else ():
        match name.split("."):
            case ["backbone", "stages", _, block, "conv1", "conv", _]:
                shifts = int(block) % every == 0
            case ["backbone", "blocks", block, "expand", "conv", _]:
                index = _place_in_stage(int(block))[1]  # the first of a width has no residual
                shifts = index > 0 and index % every == 0
            case _:
                continue
        if shifts:
            module = names.parts(name.split(".")[1:-2])[0]
            yield names.prefix + (module.removesuffix("conv") if names.wraps_norm else f"{module}.")


def _their_name(family: str, backbone: str, ours: str) -> str:
    """Returns the project's name of our tensor, without the `net` of a wrapped module."""
    names = _NAMES[family, backbone == MOBILENET]
    if ours.startswith(HEAD):
        return f"{names.classifier}.{'weight' if ours.endswith('kernel') else 'bias'}"
    *path, kind, leaf = ours.split(".")[1:]
    convolution, norm = names.parts(path)
    own = f"{convolution}.weight" if kind == "conv" else f"{norm}.{_NORM[leaf]}"
    return names.prefix + own


def _transposed(value: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Transposes kernels by `axes`, and swaps the axes of matrices."""
    return value.transpose(axes) if value.ndim == 4 else value.T if value.ndim == 2 else value
