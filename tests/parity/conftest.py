"""The reference's answers."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module", autouse=True)
def compiled_as_for_a_user():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def forward_goldens():
    return dict(np.load(GOLDENS / "paddle_forward.npz"))


@pytest.fixture(scope="session")
def train_goldens():
    return dict(np.load(GOLDENS / "paddle_train.npz"))
