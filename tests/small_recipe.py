"""A recipe that trains in seconds, for tests of whole runs in this or another process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tsm_jax.config import default

if str(Path(__file__).parent) not in sys.path:
    sys.path.append(str(Path(__file__).parent))  # when a command loads this file as its recipe

import toy_backbone  # noqa: F401  registers a name for `config.model.backbone`

RECIPE = __file__


def get_config() -> ConfigDict:
    config = default()
    config.model.backbone = "toy"
    config.model.width = 32
    config.model.num_segments = 4
    config.model.num_classes = 8
    config.model.batch_norm_group = 0
    config.data.crop_size = 32
    config.data.short_side = 32
    config.data.flip = False
    config.batch_size = 8
    config.epochs = 2
    config.log_every = 2
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 0.02
    config.optimizer.warmup_epochs = 0.5
    return config


def overrides(data: Path, workdir: Path, **changes: Any) -> list[str]:
    """Returns command-line overrides for a rendered data set in the folder `data`."""
    values = {
        "data.train_list": data / "train.list",
        "data.val_list": data / "val.list",
        "data.prefix": data,
        "workdir": workdir,
        **changes,
    }
    return [f"--config.{key}={value}" for key, value in values.items()]
