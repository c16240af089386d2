"""What predicts: an exported folder, or any other weights in jax."""

from __future__ import annotations

from tsm_jax.deploy.artifact import is_artifact
from tsm_jax.deploy.engine import check_names
from tsm_jax.deploy.predictor import Predictor
from tsm_jax.errors import UserError


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
        num_segments: T of a file of weights that does not tell it.
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
        from tsm_jax.assemble.recognizer import load
    except ImportError as error:
        raise UserError(
            f"{model} is not an exported folder, and other weights need the whole of tsm_jax"
            f" ({error.name} is missing): export them first, python -m tsm_jax.export"
        ) from error
    return load(model, num_segments=num_segments, dtype=precision).predictor(protocol)
