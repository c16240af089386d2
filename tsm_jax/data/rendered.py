"""Whether a rendered data set lies in a folder: known without what renders it."""

from __future__ import annotations

from pathlib import Path

from tsm_jax.errors import UserError
from tsm_jax.files import read_json

# Raise it with every change of the pixels: an older set on disk is then not taken for this one.
VERSION = 1

DESCRIPTION_FILE = "dataset.json"  # written last


def description(train_videos: int, val_videos: int, seed: int) -> dict[str, int]:
    """What decides the pixels of `moving_shapes.render`."""
    return {
        "version": VERSION,
        "train_videos": train_videos,
        "val_videos": val_videos,
        "seed": seed,
    }


def holds(directory: str | Path, wanted: dict[str, int]) -> bool:
    """Whether there is a complete set in `directory`, the one that is `wanted`.

    Raises:
        UserError: there is another one.
    """
    path = Path(directory) / DESCRIPTION_FILE
    if not path.exists():
        return False
    found = read_json(path, "the description of the data set")
    if found != wanted:
        raise UserError(
            f"{directory} holds another rendering ({found}) than the one asked for ({wanted}); "
            "delete it or choose another folder"
        )
    return True
