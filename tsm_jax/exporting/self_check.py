"""Checks that exported graphs compute the same as the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from tsm_jax.deploy.artifact import Artifact
from tsm_jax.deploy.engine import FILES, installed, open_engine, open_stream_engine
from tsm_jax.errors import UserError
from tsm_jax.exporting.program import build_module
from tsm_jax.models.network import normalize
from tsm_jax.weights.model_directory import Model

# Limits of `relative_difference`. For int8 it only has to be finite; `check_int8` judges the rest.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "int8": sys.float_info.max}
# Limit of the `error` of int8. Measured: 0.01 for ResNets, 0.04 (10 classes) and 0.14 (ImageNet's
# 1,000 classes) for MobileNetV2.
LARGEST_ERROR = 0.25

# Function from uint8 input to float32 logits.
_Answer = Callable[[np.ndarray], np.ndarray]


def check_export(
    artifact: Artifact, model: Model, clips: np.ndarray, precisions: Sequence[str]
) -> list[dict[str, Any]]:
    """Compares every exported graph, in every installed engine, with the model.

    Args:
        clips: real clips, uint8 `[N, T, S, S, 3]`.

    Returns:
        One entry per graph, engine and input (`random` or `real`).

    Raises:
        UserError: logits differ by more than `TOLERANCES`.
    """
    module = build_module(model)
    network = jax.jit(lambda clip: module(normalize(clip)))

    def expected(video: np.ndarray) -> np.ndarray:
        return np.concatenate([network(clip[None]) for clip in video])

    def open_graph(name: str, precision: str) -> _Answer:
        return open_engine(artifact, name, precision).logits

    return _checks(artifact, clips, 2, precisions, expected, open_graph)


def check_stream_export(
    artifact: Artifact, model: Model, video: np.ndarray
) -> list[dict[str, Any]]:
    """Compares the graphs of a stream, frame by frame, with the model on the frames as one clip.

    Args:
        video: real frames, uint8 `[N, S, S, 3]`.

    The result and the errors are those of `check_export`.
    """
    # With folds of `1/num_segments`, the clip has the same folds as the stream only if N = T.
    architecture = replace(model.architecture, num_segments=len(video))
    network = jax.jit(build_module(replace(model, architecture=architecture)).frame_logits)

    def expected(frames: np.ndarray) -> np.ndarray:
        return np.asarray(network(normalize(frames[None])))[0]

    def open_graph(name: str, precision: str) -> _Answer:
        engine = open_stream_engine(artifact, name)

        def follow(frames: np.ndarray) -> np.ndarray:
            state, logits = engine.start, []
            for frame in frames:
                answer, state = engine.step(frame[None], state)
                logits.append(answer[0])
            return np.stack(logits)

        return follow

    return _checks(artifact, video, len(video), ("float32",), expected, open_graph)


def _checks(
    artifact: Artifact,
    real: np.ndarray,
    random: int,
    precisions: Sequence[str],
    expected: _Answer,
    open_graph: Callable[[str, str], _Answer],
) -> list[dict[str, Any]]:
    """Checks all graphs that can run here on real and on `random` random clips or frames.

    The model itself runs on a CPU, where float32 is not reduced to a lower precision.
    """
    drawn = np.random.default_rng(0).integers(0, 256, (random, *real.shape[1:]), np.uint8)
    inputs = {"random": drawn, "real": real}
    with jax.default_device(jax.devices("cpu")[0]):
        wanted = {kind: expected(pixels) for kind, pixels in inputs.items()}
    checks = []
    for (name, precision), file in FILES.items():
        if precision in precisions and file in artifact.hashes and _can(name, precision):
            answer = open_graph(name, precision)
            for kind, pixels in inputs.items():
                difference = relative_difference(answer(pixels), wanted[kind])
                if not difference <= TOLERANCES[precision]:
                    raise UserError(
                        f"{file} is wrong: in {name}, the relative difference between its logits"
                        f" and the model's on {kind} input is {difference:.1e}, more than"
                        f" {TOLERANCES[precision]:.0e}; nothing was exported, please report this"
                    )
                check = {"file": file, "engine": name, "precision": precision, "input": kind}
                checks.append({**check, "relative_difference": difference})
    return checks


def check_int8(artifact: Artifact, clips: np.ndarray, held_out: bool) -> dict[str, Any]:
    """Compares the int8 graph with the float32 graph.

    Args:
        artifact: the exported folder.
        clips: real clips, uint8 `[N, T, S, S, 3]`.
        held_out: whether the clips were not used for calibration.

    Returns:
        `clips` (N), `held_out`, and two values of the worst engine. `agreement` is the share of
        clips with the same best class. `error` is the root mean square difference of a clip's
        logits, divided by the standard deviation of its float32 logits; the median over the clips.

    Raises:
        UserError: the error is above `LARGEST_ERROR`.
    """
    exact = open_engine(artifact, "onnxruntime", "float32")
    expected = np.concatenate([exact.logits(clip[None]) for clip in clips])
    agreements, errors = [], []
    for name, precision in FILES:
        if precision != "int8" or not installed(name):
            continue
        engine = open_engine(artifact, name, precision)
        logits = np.concatenate([engine.logits(clip[None]) for clip in clips])
        agreements.append(float(np.mean(logits.argmax(1) == expected.argmax(1))))
        spread = expected.std(1)
        spread[spread == 0] = 1  # a classifier of zeros
        errors.append(float(np.median(np.sqrt(((logits - expected) ** 2).mean(1)) / spread)))
    agreement, error = min(agreements), float(np.max(errors))  # np.max keeps NaN
    if not error <= LARGEST_ERROR:
        raise UserError(
            f"this network cannot be quantized well: its int8 logits differ by {error:.0%} of their"
            f" spread over the classes (limit {LARGEST_ERROR:.0%}), and its class is that of"
            f" float32 for {agreement:.0%} of {len(clips)} videos; nothing was exported: give more"
            " --videos or remove int8 from --precisions"
        )
    return {"clips": len(clips), "held_out": held_out, "agreement": agreement, "error": error}


def relative_difference(logits: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference divided by the largest expected magnitude; infinite for NaN.

    If all expected logits are zero, as with a classifier of zeros, the difference is absolute.
    """
    difference = float(np.abs(logits - expected).max() / (np.abs(expected).max() or 1))
    return difference if np.isfinite(difference) else float("inf")


def _can(name: str, precision: str) -> bool:
    """Returns whether an engine is installed and this processor supports the precision."""
    if not installed(name):
        return False
    if (name, precision) != ("openvino", "bfloat16"):
        return True
    from tsm_jax.deploy.onnx_engines import has_bfloat16

    return has_bfloat16()
