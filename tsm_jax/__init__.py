"""Temporal Shift Module for video recognition in JAX.

import tsm_jax
recognizer = tsm_jax.load("output/quickstart")
recognizer.predict("example.avi", top_k=5)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tsm_jax.errors import UnreadableClipError, UserError

if TYPE_CHECKING:
    from tsm_jax.assemble.predict import load_predictor
    from tsm_jax.assemble.recognizer import Recognizer, load
    from tsm_jax.assemble.stream import load_stream
    from tsm_jax.deploy.prediction import Prediction
    from tsm_jax.deploy.predictor import Predictor
    from tsm_jax.deploy.stream import Smoother, Stream

__all__ = [
    "Prediction",
    "Predictor",
    "Recognizer",
    "Smoother",
    "Stream",
    "UnreadableClipError",
    "UserError",
    "load",
    "load_predictor",
    "load_stream",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Late, so that reading workers and --help need no jax.
    match name:
        case "Prediction":
            from tsm_jax.deploy.prediction import Prediction as value
        case "Predictor":
            from tsm_jax.deploy.predictor import Predictor as value
        case "Recognizer":
            from tsm_jax.assemble.recognizer import Recognizer as value
        case "Smoother":
            from tsm_jax.deploy.stream import Smoother as value
        case "Stream":
            from tsm_jax.deploy.stream import Stream as value
        case "load_stream":
            from tsm_jax.assemble.stream import load_stream as value
        case "load":
            from tsm_jax.assemble.recognizer import load as value
        case "load_predictor":
            from tsm_jax.assemble.predict import load_predictor as value
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return value
