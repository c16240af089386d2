"""Compares logits and buffers, frame by frame, with those of MIT's online demo."""

from __future__ import annotations

import golden_recipe
import jax
import numpy as np
import pytest

import tsm_jax
from tsm_jax.exporting.self_check import relative_difference
from tsm_jax.models.architecture import Architecture
from tsm_jax.models.network import build_network
from tsm_jax.weights.pickle_writers import write_torch
from tsm_jax.weights.torch_names import MIT_ONLINE, to_torch

CASE, FRAMES, CLASSES, SIZE = "mnv2_224", 12, 27, 224
TOLERANCE = 1e-4  # of the largest value


def write_demo_weights(path: str) -> str:
    architecture = Architecture("mobilenet_v2", CLASSES, 8, shift="past_only")
    network = build_network(architecture, "float32")
    shapes = {**network.param_shapes, **network.batch_stat_shapes}
    empty = {ours: np.broadcast_to(np.float32(0), shape) for ours, shape in shapes.items()}
    names = to_torch(empty, architecture, MIT_ONLINE)
    tensors = {key: golden_recipe.draw(key, each.shape, 0) for key, each in names.items()}
    write_torch(path, tensors)
    return path


@pytest.mark.slow
def test_twelve_frames_from_the_file(tmp_path):
    goldens = np.load(golden_recipe.GOLDENS / "torch_online.npz")
    recognizer = tsm_jax.load(write_demo_weights(str(tmp_path / "online.pth.tar")))
    assert recognizer.model.architecture.shift == "past_only"
    network, state, logits = recognizer._network, None, []
    module = network.module(recognizer.params, recognizer.batch_stats)
    step = jax.jit(module.step)
    video = np.moveaxis(golden_recipe.mosaic(0, 1, FRAMES, SIZE)[0], 1, -1)  # normalised
    for frame in video:
        answer, state = step(frame[None], state)
        logits.append(answer[0])
    assert relative_difference(np.stack(logits), goldens[CASE]) < TOLERANCE
    assert state is not None and len(state) == 10
    for i, found in enumerate(state):
        expected = np.moveaxis(goldens[f"{CASE}.buffer{i}"], 1, -1)
        assert relative_difference(np.asarray(found), expected) < TOLERANCE
