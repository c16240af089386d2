"""Temporal Shift Module for video recognition in JAX.

import tsm_jax
recognizer = tsm_jax.load("output/quickstart")
recognizer.predict("example.avi", top_k=5)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tsm_jax.errors import UnreadableClipError, UserError

if TYPE_CHECKING:
    from tsm_jax.assemble.load import load, load_stream
    from tsm_jax.assemble.recognizer import Recognizer
    from tsm_jax.cli import load_recipe
    from tsm_jax.deploy.prediction import Moment, Prediction
    from tsm_jax.deploy.predictor import Answer, Embedding, Predictor
    from tsm_jax.deploy.stream import Smoother, Stream
    from tsm_jax.evaluate import evaluate
    from tsm_jax.models.architecture import Architecture
    from tsm_jax.models.summary import Layer, Summary
    from tsm_jax.report.results import Evaluation
    from tsm_jax.train import train

__all__ = [
    "Answer",
    "Architecture",
    "Embedding",
    "Evaluation",
    "Layer",
    "Moment",
    "Prediction",
    "Predictor",
    "Recognizer",
    "Smoother",
    "Stream",
    "Summary",
    "UnreadableClipError",
    "UserError",
    "evaluate",
    "load",
    "load_recipe",
    "load_stream",
    "train",
]
__version__ = "0.1.0"

# Imported on first access, so that data-loading workers and --help do not import jax.
_PLACES = {
    "Answer": "deploy.predictor",
    "Architecture": "models.architecture",
    "Embedding": "deploy.predictor",
    "Evaluation": "report.results",
    "Layer": "models.summary",
    "Moment": "deploy.prediction",
    "Prediction": "deploy.prediction",
    "Predictor": "deploy.predictor",
    "Recognizer": "assemble.recognizer",
    "Smoother": "deploy.stream",
    "Stream": "deploy.stream",
    "Summary": "models.summary",
    "load": "assemble.load",
    "load_recipe": "cli",
    "load_stream": "assemble.load",
}


def __getattr__(name: str) -> Any:
    if name in ("evaluate", "train"):  # callable modules
        return import_module(f"tsm_jax.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"tsm_jax.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
