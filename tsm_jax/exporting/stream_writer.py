"""Writes the exported folder of a network for streams, whose graphs take one frame at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from tsm_jax.data import moving_shapes
from tsm_jax.data.decode import every_frame
from tsm_jax.data.protocols import protocol_of
from tsm_jax.deploy.artifact import FRAME, LOGITS, NEXT_STATE, STATE, STREAM
from tsm_jax.deploy.stream import one_view
from tsm_jax.errors import UserError
from tsm_jax.exporting.program import Program, make_stream_program
from tsm_jax.exporting.self_check import check_stream_export
from tsm_jax.exporting.writer import check_formats, describe, write_program
from tsm_jax.files import new_folder
from tsm_jax.weights.model_directory import Model, fill_model_directory

# Many frames, so that an error that grows from frame to frame is detected.
_FRAMES_IN_CHECK = 32


def export_stream(
    model: Model,
    output: str,
    *,
    frame_rate: float | None = None,
    videos: Sequence[str] = (),
    formats: Sequence[str] = ("stablehlo", "onnx"),
    browser: bool = False,
    source: str = "the model",
) -> dict[str, Any]:
    """Exports a model for streams. The folder appears complete and checked, or not at all.

    Args:
        model: a model trained with `shift="past_only"`.
        output: the new folder.
        frame_rate: frames per second that the network takes; None uses the stored rate.
        videos: the first one is used for the check; without any, a synthetic video is.
        formats: `stablehlo`, `onnx` or both.
        browser: add a web page that runs the ONNX graph on a camera or a video.
        source: name of the model in error messages.

    Returns:
        `export` of the folder's config.json.

    Raises:
        UserError: the model needs future frames, its frame rate is unknown, or an error of
            `export_model`.
    """
    check_formats(formats)
    if browser and "onnx" not in formats:
        raise UserError("--browser needs the ONNX graph: add onnx to --formats")
    program = make_stream_program(model, source=source)
    frame_rate = frame_rate or model.preprocessing.frame_rate
    if not frame_rate:
        raise UserError(
            f"{source} does not contain the frame rate of its training: give --fps, the frames of a"
            " clip divided by its duration in seconds (docs/live.md)"
        )
    model = replace(model, preprocessing=replace(model.preprocessing, frame_rate=frame_rate))
    with new_folder(output) as folder:
        fill_model_directory(model, folder)
        write_program(program, folder, formats)
        exported = describe(
            model,
            folder,
            output,
            _ports(model, program),
            lambda artifact: {
                "self_check": check_stream_export(artifact, model, _frames(model, videos))
            },
        )
        if browser:
            from tsm_jax.exporting.browser import add_page

            add_page(folder)
    return exported


def _ports(model: Model, program: Program) -> dict[str, Any]:
    size = protocol_of(model.preprocessing).crop_size
    shapes = [state.shape for state in program.state]  # NHWC
    return {
        "kind": STREAM,
        "input": {
            "name": FRAME,
            "dtype": "uint8",
            "shape": [1, size, size, 3],
            "meaning": "an RGB frame after resize and centre crop; the graph normalises it",
        },
        "outputs": {LOGITS: {"dtype": "float32", "shape": [1, model.architecture.num_classes]}},
        "state": {
            "inputs": [STATE.format(i) for i in range(len(shapes))],
            "outputs": [NEXT_STATE.format(i) for i in range(len(shapes))],
            "dtype": "float32",
            "shapes": {
                "onnx": [[n, c, h, w] for n, h, w, c in shapes],
                "stablehlo": [list(shape) for shape in shapes],
            },
            "meaning": "zeros before the first frame; then what the frame before gave",
        },
    }


def _frames(model: Model, videos: Sequence[str]) -> np.ndarray:
    """Returns frames of the first video, or of a synthetic one, uint8 `[N, S, S, 3]`."""
    by_segments = model.architecture.shift_fraction != "1/8"  # then the folds depend on T
    count = model.architecture.num_segments if by_segments else _FRAMES_IN_CHECK
    if videos:
        frames = list(islice(every_frame(videos[0]), count))
    else:
        frames = list(moving_shapes.draw_clip(0, np.random.default_rng(0)))
    frames = [frames[i] for i in np.arange(count) % len(frames)]
    return one_view(protocol_of(model.preprocessing)).views(frames, "the video")[0]
