"""What has to be known, besides its weights, to rebuild a network."""

from __future__ import annotations

from dataclasses import dataclass, field

from tsm_jax.errors import UserError
from tsm_jax.files import between, check_fields, one_of
from tsm_jax.models.backbones import BACKBONES

# Names of the classifier's tensors, the same for every backbone.
HEAD = "head."
CLASSIFIER = "head.fc.kernel"
CLASSIFIER_BIAS = "head.fc.bias"

SHIFTS = ("past_first", "future_first", "past_only", "none")
SHIFT_FRACTIONS = ("1/8", "1/num_segments")
SHIFT_EVERY = (1, 2)

# Largest sizes: far above any published network, far below what fills a machine's memory.
MAX_WIDTH = 1024
MAX_CLASSES = 100_000
MAX_SEGMENTS = 1024


@dataclass(frozen=True)
class Architecture:
    """Stored with weights, because the shapes of tensors do not tell it all.

    Attributes as in `config.model`: a wrong `shift`, `shift_fraction`, `shift_every` or
    `num_segments` would load without an error and answer something else.

    Raises:
        UserError: a value is of another type, not one of its choices or out of range.
    """

    backbone: str = field(metadata=one_of(BACKBONES))
    num_classes: int = field(metadata=between(1, MAX_CLASSES))
    num_segments: int = field(metadata=between(1, MAX_SEGMENTS))
    width: int = field(default=64, metadata=between(8, MAX_WIDTH))
    shift: str = field(default="past_first", metadata=one_of(SHIFTS))
    shift_fraction: str = field(default="1/8", metadata=one_of(SHIFT_FRACTIONS))
    shift_every: int = field(default=1, metadata=one_of(SHIFT_EVERY))

    def __post_init__(self):
        check_fields(self)
        if self.num_segments == 1 and self.shift != "none" and self.shift_fraction != "1/8":
            raise UserError(
                "architecture.num_segments is 1: one frame cannot be shifted by 1/num_segments of"
                " its channels"
            )

        if BACKBONES[self.backbone].whole_clip and self.shift == "past_only":
            raise UserError(
                f"architecture.shift is past_only: {self.backbone} needs all frames of a clip for"
                " each; take another backbone"
            )

    def __str__(self) -> str:
        return f"TSM-{BACKBONES[self.backbone].title}"
