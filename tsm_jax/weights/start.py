"""Selects the initial weights of a training run that starts from another network's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tsm_jax.errors import UserError
from tsm_jax.models.architecture import HEAD


@dataclass(frozen=True)
class Start:
    """The initial weights of a training run.

    Attributes:
        loaded: loaded tensors by name.
        fresh: names of tensors that keep their random initialisation.
        left: names of tensors in the file that are not used.
    """

    loaded: dict[str, np.ndarray]
    fresh: list[str]
    left: list[str]

    def __str__(self) -> str:
        return (
            f"loaded {len(self.loaded)} tensors ({_summary(self.loaded)}); {len(self.fresh)} newly"
            f" initialised ({_summary(self.fresh)}); {len(self.left)} not used"
            f" ({_summary(self.left)})"
        )


def choose_start(
    tensors: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    *,
    with_head: bool,
    ignore: Sequence[str] = (),
    source: str = "the weights",
) -> Start:
    """Selects the tensors to load.

    Args:
        expected: shapes of the network's tensors by name.
        with_head: also load the classifier.
        ignore: names, or prefixes of names, of tensors that may differ and are then initialised
            randomly.

    Raises:
        UserError: a tensor that is not ignored is missing, unexpected or has another shape.
    """
    skipped = (*ignore, *(() if with_head else (HEAD,)))
    problems, loaded, fresh = [], {}, []
    for name, shape in expected.items():
        wanted = with_head or not name.startswith(HEAD)
        if wanted and name in tensors and tensors[name].shape == tuple(shape):
            loaded[name] = tensors[name]
        elif name.startswith(skipped):
            fresh.append(name)
        elif name in tensors:
            problems.append(f"{name} has shape {tensors[name].shape} instead of {tuple(shape)}")
        else:
            problems.append(f"{name} is missing")
    left = [name for name in tensors if name not in loaded]
    problems += [
        f"{name} is not part of the network"
        for name in left
        if name not in expected and not name.startswith(skipped)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{source} does not fit the network: {'; '.join(problems[:3])}{more}. List tensors that"
            " may differ in config.init_ignore, for example --config.init_ignore=\"('head.',)\""
        )
    return Start(loaded, fresh, left)


_FIRST_FOLD = {
    "past_first": "fold 1 still comes from the previous frame",
    "future_first": "fold 1 came from the next frame and now comes from the previous one",
    "none": "the weights had no shift; fold 1 now comes from the previous frame",
    None: "the weights do not store their shift; fold 1 now comes from the previous frame",
}


def shift_change(there: str | None, here: str) -> str:
    """Explains in one line what changes if the initial weights were trained with another shift.

    Args:
        there: shift of the initial weights; None if unknown.
        here: shift of the network.

    Returns:
        The explanation, or an empty string if nothing changes.
    """
    if there == here or (there is None and here != "past_only"):
        return ""
    if here != "past_only":
        return f"the shift changes from {there} to {here}: train until the layers have adapted"
    return (
        f"the shift becomes past_only: {_FIRST_FOLD.get(there, _FIRST_FOLD[None])}; fold 2 stays"
        " in its frame, and nothing comes from future frames: train until the layers have adapted"
    )


def _summary(names: Sequence[str] | Mapping[str, np.ndarray]) -> str:
    """Lists the parts of the network that contain `names`."""
    parts = sorted({".".join(name.split(".")[:3]) for name in names})
    shown = [part for part in parts if part.startswith(HEAD)]
    backbone = [part for part in parts if not part.startswith(HEAD)]
    if backbone:
        shown.insert(0, "backbone")
    return ", ".join(shown) or "none"
