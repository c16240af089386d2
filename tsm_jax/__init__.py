"""Temporal Shift Module for video recognition in JAX.

import tsm_jax
recognizer = tsm_jax.load("output/quickstart")
recognizer.predict("example.avi", top_k=5)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tsm_jax.errors import UnreadableClipError, UserError

if TYPE_CHECKING:
    from tsm_jax.recognizer import Prediction, Recognizer, load

__all__ = ["Prediction", "Recognizer", "UnreadableClipError", "UserError", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Late, so that reading workers and --help need no jax.
    if name in ("Prediction", "Recognizer", "load"):
        from tsm_jax import recognizer

        return getattr(recognizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
