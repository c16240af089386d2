"""Outputs of the reference implementation, and compilation with all optimizations."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module", autouse=True)
def compiled_with_optimizations():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def forward_goldens():
    return dict(np.load(GOLDENS / "paddle_forward.npz"))


@pytest.fixture(scope="session")
def train_goldens():
    return dict(np.load(GOLDENS / "paddle_train.npz"))
