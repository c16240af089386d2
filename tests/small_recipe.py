"""A quickstart that trains in seconds, for tests that need a whole run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

RECIPE = str(Path(__file__).parents[1] / "configs" / "quickstart.py")


def overrides(data: Path, workdir: Path, **changes: Any) -> list[str]:
    """Arguments of a command, for the folder of a rendered data set."""
    values = {
        "data.render": "",
        "data.train_list": data / "train.list",
        "data.val_list": data / "val.list",
        "data.prefix": data,
        "data.crop_size": 32,
        "data.short_side": 32,
        "model.width": 8,
        "model.num_segments": 4,
        "model.dropout": 0.5,
        "batch_size": 8,
        "epochs": 2,
        "log_every": 2,
        "workdir": workdir,
        **changes,
    }
    return [f"--config.{key}={value}" for key, value in values.items()]
