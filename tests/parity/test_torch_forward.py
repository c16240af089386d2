"""Compares logits with those of MIT's, mmaction2's and torchvision's networks."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import golden_recipe
import numpy as np
import pytest

import tsm_jax
from tsm_jax.assemble.recognizer import Recognizer
from tsm_jax.exporting.self_check import relative_difference
from tsm_jax.models.architecture import Architecture
from tsm_jax.models.network import build_network
from tsm_jax.weights.pickle_writers import write_torch
from tsm_jax.weights.torch_names import IMAGE, MIT, MIT_ONLINE, MMACTION2, to_torch

TOLERANCE = 1e-4  # of the largest logit
FAMILIES = {"mit": MIT, "mit_online": MIT_ONLINE, "mmaction2": MMACTION2, "torchvision": IMAGE}


class Case(NamedTuple):
    backbone: str
    seed: int
    clips: int
    size: int
    classes: int = 400
    shift: str = "future_first"
    shift_every: int = 1
    segments: int = 8


CASES = {
    "mit/tsn_r50_224": Case("resnet50", 0, 1, 224, shift="none"),
    "mit/tsn_r50_64": Case("resnet50", 1, 2, 64, shift="none"),
    "mit/tsm_r50_224": Case("resnet50", 0, 1, 224),
    "mit/tsm_r50_64": Case("resnet50", 1, 2, 64),
    "mit/tsm_r101_64": Case("resnet101", 0, 2, 64, 174, shift_every=2),
    "mit/tsm_mnv2_224": Case("mobilenet_v2", 0, 1, 224),
    "mit/tsm_mnv2_64": Case("mobilenet_v2", 1, 2, 64),
    # The golden is the mean of the logits of frames processed one by one from empty buffers.
    "mit_online/mnv2_224": Case("mobilenet_v2", 0, 1, 224, 27, "past_only", segments=12),
    "mmaction2/tsm_r50_224": Case("resnet50", 0, 1, 224),
    "mmaction2/tsm_r50_64": Case("resnet50", 1, 2, 64),
    "mmaction2/tsm_r101_64": Case("resnet101", 0, 2, 64, 174, shift_every=2),
    "mmaction2/tsm_mnv2_224": Case("mobilenet_v2", 0, 1, 224),
    "mmaction2/tsm_mnv2_64": Case("mobilenet_v2", 1, 2, 64),
    "torchvision/resnet50": Case("resnet50", 0, 2, 224, 1000, "none", segments=1),
    "torchvision/mobilenet_v2": Case("mobilenet_v2", 0, 2, 224, 1000, "none", segments=1),
}


@pytest.fixture(scope="module")
def goldens():
    return dict(np.load(golden_recipe.GOLDENS / "torch_forward.npz"))


def names_and_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the original's state dict, which the test below verifies."""
    case = CASES[name]
    architecture = Architecture(
        case.backbone, case.classes, 8, shift=case.shift, shift_every=case.shift_every
    )
    network = build_network(architecture, "float32")
    shapes = {**network.param_shapes, **network.batch_stat_shapes}
    empty = {ours: np.broadcast_to(np.float32(0), shape) for ours, shape in shapes.items()}
    tensors = to_torch(empty, architecture, FAMILIES[name.partition("/")[0]])
    return {theirs: tensor.shape for theirs, tensor in tensors.items()}


def file_of(name: str, folder: Path) -> str:
    path, seed = str(folder / "x.pth"), CASES[name].seed
    shapes = names_and_shapes(name)
    tensors = {key: golden_recipe.draw(key, shape, seed) for key, shape in shapes.items()}
    is_bare = name.startswith(("torchvision", "mit_online"))
    write_torch(path, tensors if is_bare else {"state_dict": tensors})
    return path


def input_of(name: str) -> np.ndarray:
    case = CASES[name]
    video = golden_recipe.mosaic(case.seed, case.clips, case.segments, case.size)
    return np.moveaxis(video, 2, -1)


ONE_SIZE = [name for name in CASES if name.replace("_224", "_64") not in {*CASES} - {name}]


@pytest.mark.parametrize("name", ONE_SIZE)
def test_names_and_shapes_of_every_tensor(name, goldens):
    rows = [f"{key}\t{'x'.join(map(str, shape))}" for key, shape in names_and_shapes(name).items()]
    digest = hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()
    assert digest == goldens[f"{name}.keys_sha256"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n != "mmaction2/tsm_mnv2_64")) for n in CASES],
)
def test_logits_from_the_file(name, goldens, tmp_path):
    case = CASES[name]
    recognizer = tsm_jax.load(file_of(name, tmp_path), num_segments=case.segments)
    architecture = recognizer.model.architecture
    assert (architecture.shift, architecture.shift_every) == (case.shift, case.shift_every)
    assert relative_difference(recognizer.forward(input_of(name)), goldens[name]) < TOLERANCE


@pytest.mark.slow
def test_the_golden_detects_the_other_direction(goldens, tmp_path):
    """It loads without an error, so only the golden can detect it."""
    path = file_of("mmaction2/tsm_mnv2_64", tmp_path)
    model = tsm_jax.load(path, num_segments=8).model
    model = replace(model, architecture=replace(model.architecture, shift="past_first"))
    logits = Recognizer(model).forward(input_of("mmaction2/tsm_mnv2_64"))
    assert relative_difference(logits, goldens["mmaction2/tsm_mnv2_64"]) > 30 * TOLERANCE
