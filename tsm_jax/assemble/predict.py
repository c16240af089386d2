"""What predicts: an exported folder, or any other weights in jax."""

from __future__ import annotations

import hashlib

import numpy as np

from tsm_jax.data.protocols import protocol_of
from tsm_jax.deploy.artifact import is_artifact
from tsm_jax.deploy.engine import check_names
from tsm_jax.deploy.predictor import Predictor
from tsm_jax.errors import UserError
from tsm_jax.models.architecture import CLASSIFIER
from tsm_jax.weights.model_directory import Model


def load_predictor(
    model: str,
    *,
    engine: str = "auto",
    precision: str = "float32",
    num_segments: int | None = None,
    protocol: str | None = None,
) -> Predictor:
    """Opens a model to predict many videos.

    Args:
        model: an exported folder; or, with the whole package installed, anything that
            `tsm_jax.load` takes, which then runs in jax.
        engine: `auto`, `jax`, `onnxruntime` or `openvino`.
        precision: `float32`, `bfloat16` or `int8`.
        num_segments: T of a `.pdparams`, which does not store it.
        protocol: which views of a video are averaged, one of `tsm_jax.data.protocols`; None for
            the one stored with the weights.

    Raises:
        UserError: nothing usable is there, or it cannot run this way.
    """
    check_names(engine, precision)
    if is_artifact(model):
        return Predictor.load(
            model,
            engine=engine,
            precision=precision,
            num_segments=num_segments,
            protocol=protocol,
        )
    if engine not in ("auto", "jax") or precision == "int8":
        raise UserError(
            f"{model} is not an exported folder: {engine if precision != 'int8' else precision}"
            " runs what python -m tsm_jax.export writes"
        )
    try:
        # Late: an exported folder needs neither flax nor jax.
        from tsm_jax.assemble.recognizer import RecognizerEngine, load
    except ImportError as error:
        raise UserError(
            f"{model} is not an exported folder, and other weights need the whole of tsm_jax"
            f" ({error.name} is missing): export them first, python -m tsm_jax.export"
        ) from error
    recognizer = load(model, num_segments=num_segments, dtype=precision)
    return Predictor(
        RecognizerEngine(recognizer, precision),
        recognizer.labels,
        recognizer.num_segments,
        protocol_of(recognizer.model.preprocessing, protocol),
        lambda: np.asarray(recognizer.params[CLASSIFIER]),
        source=model,
        fingerprint=lambda: _fingerprint(recognizer.model),
    )


def _fingerprint(model: Model) -> str:
    digest = hashlib.sha256(repr(model.architecture).encode())
    for name, tensor in sorted(model.tensors.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()
