"""The clips worth looking at, and their frames as a strip."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tsm_jax.data.clips import EvalClips
from tsm_jax.deploy.drawing import PAPER
from tsm_jax.report.results import Results

_SIDE, _GAP = 128, 4  # of a frame and between frames, pixels
_IN_ROW = 8


def confident_mistakes(results: Results, most: int) -> list[int]:
    """Clips with a wrong answer, the most confident first."""
    wrong = np.flatnonzero(~results.correct)
    order = np.argsort(-results.confidence[wrong], kind="stable")
    return [int(i) for i in wrong[order][:most]]


def hardest_clips(results: Results, most: int) -> list[int]:
    """Clips whose right class scores lowest, the lowest first, whether it won or not."""
    own = results.scores[np.arange(len(results.labels)), results.labels]
    return [int(i) for i in np.argsort(own, kind="stable")[:most]]


def read_frames(clips: EvalClips, index: int) -> np.ndarray:
    """What the network saw of a clip, uint8 `[T, S, S, 3]`; the middle one of several views.

    Raises:
        UnreadableClipError: the clip cannot be read any more.
    """
    video = clips.read(index)["video"]  # [V, T, S, S, 3]
    return video[len(video) // 2]


def draw_strip(frames: np.ndarray) -> Image.Image:
    """Frames uint8 `[T, S, S, 3]` side by side, eight in a row."""
    columns = min(len(frames), _IN_ROW)
    rows = -(-len(frames) // columns)
    step = _SIDE + _GAP
    canvas = Image.new("RGB", (columns * step - _GAP, rows * step - _GAP), PAPER)
    for i, frame in enumerate(frames):
        image = Image.fromarray(frame).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        canvas.paste(image, (i % columns * step, i // columns * step))
    return canvas
