"""Starting a training from weights of another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tsm_jax.errors import UserError
from tsm_jax.models.architecture import HEAD


@dataclass(frozen=True)
class Start:
    """What a training starts from: tensors by name, and names of others."""

    loaded: dict[str, np.ndarray]
    fresh: list[str]  # keep their random start
    left: list[str]  # in the file, but not used

    def __str__(self) -> str:
        return (
            f"loaded {len(self.loaded)} tensors ({_summary(self.loaded)}); fresh"
            f" {len(self.fresh)} ({_summary(self.fresh)}); not used {len(self.left)}"
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
    """Decides tensor by tensor what is loaded.

    Args:
        expected: name to shape of what the network needs.
        with_head: take the classifier too.
        ignore: names, or beginnings of names, that may differ and then start fresh.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape and is not ignored.
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
            problems.append(f"{name} is {tensors[name].shape} there and {tuple(shape)} here")
        else:
            problems.append(f"{name} is missing there")
    left = [name for name in tensors if name not in loaded]
    problems += [
        f"{name} is not part of this network"
        for name in left
        if name not in expected and not name.startswith(skipped)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{source} does not fit: {'; '.join(problems[:3])}{more}. Name what may differ in"
            " config.init_ignore, for example --config.init_ignore=\"('head.',)\""
        )
    return Start(loaded, fresh, left)


_FIRST_FOLD = {
    "past_first": "fold 1 still comes from the frame before",
    "future_first": "fold 1 came from the frame after and comes from the one before now",
    "none": "nothing was shifted there; fold 1 comes from the frame before now",
    None: "which way it was shifted there is not stored; fold 1 comes from the frame before now",
}


def shift_change(there: str | None, here: str) -> str:
    """What it means for a network that the weights it starts from were trained with another shift,
    in one line; empty if they were not. The direction `there` is None if it is not known.
    """
    if there == here or (there is None and here != "past_only"):
        return ""
    if here != "past_only":
        return f"the shift changes from {there} to {here}: train until the layers have followed"
    return (
        f"the shift becomes past_only: {_FIRST_FOLD.get(there, _FIRST_FOLD[None])}; fold 2 stays"
        " in its frame, nothing comes from the future any more: train until the layers have"
        " followed"
    )


def _summary(names: Sequence[str] | Mapping[str, np.ndarray]) -> str:
    """The parts of the network that `names` belong to."""
    parts = sorted({".".join(name.split(".")[:3]) for name in names})
    shown = [part for part in parts if part.startswith(HEAD)]
    backbone = [part for part in parts if not part.startswith(HEAD)]
    if backbone:
        shown.insert(0, "backbone")
    return ", ".join(shown) or "none"
