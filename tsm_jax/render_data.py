"""Data sets that a recipe renders for itself at first use."""

from __future__ import annotations

import os

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import Progress

from tsm_jax.data import moving_shapes
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
    console = Console(highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = None

        def show(done: int, total: int) -> None:
            nonlocal task
            if task is None:
                console.print(f"rendering {total} videos into {directory}", markup=False)
                task = progress.add_task("render", total=total)
            progress.update(task, completed=done)

        moving_shapes.ensure(
            directory,
            train_videos=train_videos,
            val_videos=val_videos,
            seed=SEED,
            on_progress=show,
        )
