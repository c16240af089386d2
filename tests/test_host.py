"""Detection of usable cores and processor features."""

from __future__ import annotations

import os
import platform

import pytest

from tsm_jax import host


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "12800000 100000\n"}, 64),  # more than the machine has
        ({"cpu.max": "unknown\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)
def test_usable_cores_respect_the_container_quota(files, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(host, "_CGROUP", str(tmp_path))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host.usable_cores() == cores


@pytest.mark.parametrize(
    ("machine", "features", "wide"),
    [
        ("x86_64", "flags : avx2 avx512f avx512_vnni", True),
        ("x86_64", "flags : avx2 avx_vnni", True),
        ("x86_64", "flags : avx2 avx512f", False),
        ("AMD64", "Intel64 Family 6", False),
        ("aarch64", "Features : asimd", True),
    ],
)
def test_bytes_are_summed_in_32_bits_with_vnni_or_on_arm(machine, features, wide, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(host, "_features", lambda: features)
    assert host.sums_bytes_in_32_bits() is wide
