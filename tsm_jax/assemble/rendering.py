"""Data sets that a recipe renders for itself at first use."""

from __future__ import annotations

import os

import jax
from ml_collections import ConfigDict

from tsm_jax.data import moving_shapes
from tsm_jax.terminal import progress_bar
from tsm_jax.training.processes import wait_for_all

SEED = 0


def ensure_rendered(config: ConfigDict) -> None:
    """Renders the recipe's data set beside its training list unless it is there already.

    Raises:
        UserError: another data set lies there.
    """
    if config.data.render != "moving_shapes":
        return
    if jax.process_index() == 0:
        _render(config)
    wait_for_all("rendered")


def _render(config: ConfigDict) -> None:
    directory = os.path.dirname(config.data.train_list)
    train_videos, val_videos = config.data.rendered_clips
    with progress_bar("render") as update:

        def show(done: int, total: int) -> None:
            if done == 1:
                print(f"rendering {total} videos into {directory}", flush=True)
            update(done, total)

        moving_shapes.ensure(
            directory,
            train_videos=train_videos,
            val_videos=val_videos,
            seed=SEED,
            on_progress=show,
        )
