"""What has to be known, besides its weights, to rebuild a network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Stored with weights, because the shapes of tensors do not tell it all.

    Attributes as in `config.model`: a wrong `shift`, `shift_fraction`, `shift_every` or
    `num_segments` would load without an error and answer something else.
    """

    depth: int
    num_classes: int
    num_segments: int
    width: int = 64
    shift: str = "past_first"
    shift_fraction: str = "1/8"
    shift_every: int = 1
