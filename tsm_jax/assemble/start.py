"""The weights of `config.init_from` for a network of the recipe."""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from tsm_jax.errors import UserError
from tsm_jax.models.network import Network


def load_start(
    config: ConfigDict, labels: list[str], network: Network
) -> tuple[dict[str, np.ndarray] | None, list[str]]:
    """Tensors to start from, by name, and where they come from in lines; None for random ones.

    Raises:
        UserError: they cannot be had, or do not fit.
    """
    if not config.init_from:
        return None, ["starting from random weights"]
    # Late: without it no reader of other formats and no download is needed.
    from tsm_jax.assemble.weights import load_source
    from tsm_jax.weights.labels import check_same_order
    from tsm_jax.weights.start import choose_start, shift_change
    from tsm_jax.weights.zoo import is_remote

    try:
        source = load_source(config.init_from)
    except UserError as error:
        if not is_remote(config.init_from):
            raise
        raise UserError(
            f"{error}; or fetch that file on another machine, bring it here and give"
            " --config.init_from=FILE (the recipe own_videos trains without one)"
        ) from error
    if config.init_head and source.labels:
        check_same_order(source.labels, config.init_from, labels, "config.data.labels")
    start = choose_start(
        source.tensors,
        {**network.param_shapes, **network.batch_stat_shapes},
        with_head=config.init_head,
        ignore=config.init_ignore,
        source=config.init_from,
    )
    origin = [f"starting from {config.init_from}: {start}"]
    if change := shift_change(source.shift, config.model.shift):
        origin.append(change)
    return start.loaded, origin
