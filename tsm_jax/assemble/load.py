"""`tsm_jax.load` and `load_stream`: an exported folder in its engine, or other weights in jax."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tsm_jax.deploy.artifact import Artifact, is_artifact, read_artifact
from tsm_jax.deploy.engine import FILES, check_names, open_engine
from tsm_jax.deploy.stream import Stream
from tsm_jax.errors import UserError
from tsm_jax.terminal import typed
from tsm_jax.weights.hub import fetch_from_hub, is_hub_address

if TYPE_CHECKING:
    from tsm_jax.assemble.recognizer import Recognizer
    from tsm_jax.deploy.predictor import Predictor


def load(
    weights: str | os.PathLike[str],
    *,
    engine: str = "auto",
    precision: str = "float32",
    num_segments: int | None = None,
    protocol: str | None = None,
) -> Predictor:
    """Opens a network to use it.

    Args:
        weights: a workdir of a training run (its best checkpoint); a model directory; an exported
            folder; a file of weights; or an https address, a name of the zoo or
            `hf://owner/name`.
        engine: what runs an exported folder: `jax`, `onnxruntime`, `openvino`, or `auto` for the
            fastest that is installed. Other weights run in jax.
        precision: of convolutions: `float32`, `bfloat16`, or `int8` of an exported folder.
        num_segments: T of weights that do not store it, such as a `.pdparams`; 8 if None.
        protocol: which views of a video are averaged, one of `tsm_jax.data.protocols`; None for
            the one stored with the weights.

    Raises:
        UserError: nothing usable is there, or it cannot run this way.
    """
    weights = os.fspath(weights)
    check_names(engine, precision)
    folder = fetch_from_hub(weights) if is_hub_address(weights) else weights
    if is_artifact(folder):
        return _open_artifact(read_artifact(folder), engine, precision, num_segments, protocol)
    return _recognizer(folder, engine, precision, num_segments, protocol, source=weights)


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
    return _recognizer(model, engine, source=model, export="tsm export --streaming").stream()


def _recognizer(
    weights: str,
    engine: str,
    precision: str = "float32",
    num_segments: int | None = None,
    protocol: str | None = None,
    *,
    source: str,
    export: str = "",
) -> Recognizer:
    """Opens weights that are not an exported folder; `export` would make one of them."""
    export = export or typed("export")
    if engine not in ("auto", "jax") or precision == "int8":
        raise UserError(
            f"{source} is not an exported folder: {engine if precision != 'int8' else precision}"
            f" runs what {export} writes"
        )
    try:
        # Late: an exported folder needs neither flax nor jax.
        from tsm_jax.assemble.recognizer import Recognizer
        from tsm_jax.assemble.weights import load_model
    except ImportError as error:
        raise UserError(
            f"{source} is not an exported folder, and other weights need the whole of tsm_jax"
            f" ({error.name} is missing): export them first, {export}"
        ) from error
    model = load_model(weights, num_segments=num_segments)
    return Recognizer(model, precision=precision, protocol=protocol, source=source)


def _open_artifact(
    artifact: Artifact, engine: str, precision: str, num_segments: int | None, protocol: str | None
) -> Predictor:
    from tsm_jax.deploy.predictor import Predictor  # late: a stream of frames needs no decoder

    if num_segments not in (None, artifact.num_segments):
        raise UserError(
            f"{artifact.folder} was exported for {artifact.num_segments} segments, not"
            f" {num_segments}"
        )
    chosen = artifact.protocol(protocol)
    opened = open_engine(artifact, engine, precision)
    return Predictor(
        opened,
        artifact.labels,
        artifact.architecture,
        chosen,
        artifact.classifier,
        source=artifact.folder,
        fingerprint=lambda: artifact.hashes[FILES[opened.name, precision]],
    )
