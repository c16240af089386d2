"""What devices send each other in a training step: gradients once, activations never.

This is read from the program compiled for eight devices, so no timing is needed.
"""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsm_jax.models.network import Network
from tsm_jax.models.tsm import TSM
from tsm_jax.training.mesh import make_mesh
from tsm_jax.training.optimizer import make_optimizer, make_schedule
from tsm_jax.training.state import abstract_state
from tsm_jax.training.steps import make_train_step

BATCH, DEVICES = 16, 8
COLLECTIVE = re.compile(
    r" = (?P<result>.*?) (?P<name>all-reduce|all-gather|all-to-all|reduce-scatter"
    r"|collective-permute|collective-broadcast)(-start)?\("
)
BYTES = {"f32": 4, "s32": 4, "u32": 4, "s8": 1, "u8": 1, "pred": 1, "bf16": 2}


def collectives(batch_norm_group, accumulation_steps=1):
    """Returns (name, bytes) of collective operations, and the bytes of gradients and statistics."""
    mesh = make_mesh(jax.devices()[:DEVICES])
    network = Network(
        lambda: TSM(
            "toy",
            num_classes=4,
            num_segments=4,
            width=8,
            batch_norm_group=batch_norm_group,
        )
    )
    schedule = make_schedule(
        0.01, schedule="step", boundaries=(), decay_factor=0.1, warmup_steps=0, total_steps=4
    )
    optimizer = make_optimizer(
        schedule,
        momentum=0.9,
        weight_decay=1e-4,
        decay="weights",
        clip_norm=20.0,
        fc_weight_multiplier=5.0,
        fc_bias_multiplier=10.0,
    )
    step = make_train_step(
        network,
        optimizer,
        schedule,
        mesh=mesh,
        seed=3,
        accumulation_steps=accumulation_steps,
    )
    batch = {
        "video": jax.ShapeDtypeStruct((BATCH, 1, 4, 32, 32, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((BATCH,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((BATCH,), jnp.bool_),
    }
    lowered = step.lower(abstract_state(network, optimizer, mesh), batch)
    text = lowered.compile().as_text()
    found = [
        (match["name"], sum(map(size, re.findall(r"(\w+)\[([\d,]*)\]", match["result"]))))
        for match in COLLECTIVE.finditer(text)
    ]
    shapes = [*network.param_shapes.values(), *network.batch_stat_shapes.values()]
    return found, 4 * sum(math.prod(shape) for shape in shapes)


def size(tensor):
    dtype, shape = tensor
    return BYTES[dtype] * int(np.prod([int(n) for n in shape.split(",") if n]))


def test_with_whole_groups_per_device_only_gradients_are_sent():
    found, gradients_and_statistics = collectives(BATCH // DEVICES)
    assert {name for name, _ in found} == {"all-reduce"}
    # One sum of everything, and one of a few numbers (loss, counts) that it needs before.
    assert len(found) == 2
    sizes = sorted(number for _, number in found)
    assert sizes[0] < 100
    assert gradients_and_statistics <= sum(sizes) < gradients_and_statistics + 100


@pytest.mark.slow
def test_parts_of_a_batch_stay_on_their_devices():
    found, gradients_and_statistics = collectives(1, accumulation_steps=2)
    assert {name for name, _ in found} == {"all-reduce"}
    assert sum(number for _, number in found) < 1.1 * gradients_and_statistics


@pytest.mark.slow
@pytest.mark.parametrize("group", [4, 8, 0])
def test_groups_over_several_devices_send_statistics_but_no_activations(group):
    found, gradients_and_statistics = collectives(group)
    assert {name for name, _ in found} == {"all-reduce"}
    # Each batch norm: the typical value, the sums of distances from it, those of the gradient.
    assert len(found) <= 3 * 5 + 3
    channels = 8 + 16 + 16 + 8 + 24  # of the five
    assert sum(number for _, number in found) < gradients_and_statistics + 4 * 6 * channels + 100
