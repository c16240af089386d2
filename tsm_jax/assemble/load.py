"""`tsm_jax.load` and `load_stream`: exported folders in their engine, other weights in jax."""

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
    """Opens a network for prediction.

    Args:
        weights: the workdir of a training run (its best checkpoint is used); a model directory; an
            exported folder; a file of weights; an https address; a name in the zoo; or
            `hf://owner/name`.
        engine: the engine for an exported folder: `jax`, `onnxruntime`, `openvino`, or `auto` for
            the fastest one installed. Other weights run in jax.
        precision: precision of convolutions: `float32`, `bfloat16`, or, for an exported folder,
            `int8`.
        num_segments: T for weights that do not store it, such as a `.pdparams`; 8 if None.
        protocol: which views of a video are averaged, one of `tsm_jax.data.protocols`; None for
            the one stored with the weights.

    Raises:
        UserError: the weights do not exist, are unusable, or cannot run with these options.
    """
    weights = os.fspath(weights)
    check_names(engine, precision)
    folder = fetch_from_hub(weights) if is_hub_address(weights) else weights
    if is_artifact(folder):
        return _open_artifact(read_artifact(folder), engine, precision, num_segments, protocol)
    return _recognizer(folder, engine, precision, num_segments, protocol, source=weights)


def load_stream(model: str, *, engine: str = "auto") -> Stream:
    """Opens a model for following a stream frame by frame.

    Args:
        model: a folder written by `export --streaming`; or, with the full package installed,
            anything that `tsm_jax.load` accepts and that was trained with `shift=past_only`, which
            then runs in jax.
        engine: `auto`, `jax`, `onnxruntime` or `openvino`.

    Raises:
        UserError: the model does not exist, is unusable, needs future frames, or cannot run in
            this engine.
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
    """Opens weights that are not an exported folder; `export` is the command that exports them."""
    export = export or typed("export")
    if engine not in ("auto", "jax") or precision == "int8":
        raise UserError(
            f"{source} is not an exported folder, which"
            f" {engine if precision != 'int8' else precision} requires: write one with {export}"
        )
    try:
        # Late: an exported folder needs neither flax nor jax.
        from tsm_jax.assemble.recognizer import Recognizer
        from tsm_jax.assemble.weights import load_model
    except ImportError as error:
        raise UserError(
            f"{source} is not an exported folder, and other weights need the full tsm_jax package"
            f" ({error.name} is missing): export them first with {export}"
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
