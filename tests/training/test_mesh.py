"""Which devices form a mesh, and which batches can be divided over it."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import pytest

from tsm_jax.errors import UserError
from tsm_jax.training.mesh import check_batch, eval_batch_size, make_mesh


@dataclass(frozen=True)
class Device:
    id: int
    process_index: int


def test_the_devices_of_a_process_are_adjacent():
    # As on a TPU slice, where device ids follow the wiring instead of the hosts.
    devices = [Device(0, 0), Device(1, 0), Device(2, 1), Device(3, 1), Device(4, 0), Device(5, 1)]
    ordered = [(device.process_index, device.id) for device in make_mesh(devices).devices]
    assert ordered == [(0, 0), (0, 1), (0, 4), (1, 2), (1, 3), (1, 5)]


def test_a_mesh_has_all_devices_unless_some_are_given():
    assert list(make_mesh().devices) == jax.devices()


def test_processes_with_different_numbers_of_devices_are_refused():
    with pytest.raises(UserError, match="process 0 has 2, process 1 has 1"):
        make_mesh([Device(0, 0), Device(1, 0), Device(2, 1)])


@pytest.mark.parametrize(
    "batch_size, group, num_devices",
    [(128, 16, 8), (128, 16, 4), (128, 16, 1), (16, 4, 8), (8, 16, 8), (24, 0, 8), (48, 16, 3)],
)
def test_batches_that_can_be_divided(batch_size, group, num_devices):
    check_batch(batch_size, group, make_mesh(jax.devices()[:num_devices]))


@pytest.mark.parametrize(
    "batch_size, group, num_devices, message",
    [
        (12, 0, 8, "batch_size is 12: it must be a multiple of the number of devices, 8"),
        (48, 16, 8, "its 3 groups .*batch_norm_group=16.* 8 devices; make it a multiple of 128"),
        (144, 16, 6, "its 9 groups"),
    ],
)
def test_batches_that_cannot_be_divided(batch_size, group, num_devices, message):
    with pytest.raises(UserError, match=message):
        check_batch(batch_size, group, make_mesh(jax.devices()[:num_devices]))


def test_any_batch_can_be_evaluated():
    mesh = make_mesh(jax.devices()[:8])
    assert [eval_batch_size(wanted, 20, mesh) for wanted in (1, 8, 9, 16)] == [8, 8, 16, 16]
    assert [eval_batch_size(64, num_clips, mesh) for num_clips in (1, 9, 64, 99)] == [8, 16, 64, 64]
