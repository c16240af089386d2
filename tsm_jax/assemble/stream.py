"""What follows a stream: a folder exported for it, or any other weights in jax."""

from __future__ import annotations

from tsm_jax.deploy.artifact import is_artifact
from tsm_jax.deploy.stream import Stream
from tsm_jax.errors import UserError


def load_stream(model: str, *, engine: str = "auto") -> Stream:
    """Opens a model to follow a stream frame by frame.

    Args:
        model: what `export --streaming` wrote; or, with the whole package installed, anything that
            `tsm_jax.load` takes and that was trained with `shift=past_only`, which then runs in
            jax.
        engine: `auto`, `jax`, `onnxruntime` or `openvino`.

    Raises:
        UserError: nothing usable is there, it needs frames from the future, or it cannot run this
            way.
    """
    if is_artifact(model):
        return Stream.load(model, engine=engine)
    if engine not in ("auto", "jax"):
        raise UserError(
            f"{model} is not an exported folder: {engine} runs what tsm export --streaming writes"
        )
    try:
        # Late: an exported folder needs neither flax nor jax.
        from tsm_jax.assemble.recognizer import Recognizer
        from tsm_jax.assemble.weights import load_model
    except ImportError as error:
        raise UserError(
            f"{model} is not an exported folder, and other weights need the whole of tsm_jax"
            f" ({error.name} is missing): export them first, tsm export --streaming"
        ) from error
    return Recognizer(load_model(model), source=model).stream()
