"""The reference's answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def forward_goldens():
    return dict(np.load(GOLDENS / "paddle_forward.npz"))


@pytest.fixture(scope="session")
def train_goldens():
    return dict(np.load(GOLDENS / "paddle_train.npz"))
