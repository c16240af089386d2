"""What the network saw and what it made of it, in one picture.

The sampled frames in a strip; below them the same frames with the class activation map of the best
class and a bar for each frame's own evidence; on top the best classes with their scores.
"""

from __future__ import annotations

import os

import numpy as np
from PIL import Image, ImageDraw

from tsm_jax.deploy.drawing import FAINT, GREY, INK, PALETTE, PAPER, heat, smooth, text
from tsm_jax.deploy.prediction import Prediction
from tsm_jax.deploy.predictor import Answer, Predictor

_MARGIN, _GAP = 28, 6
_STRIP_WIDTH = 1360  # of all frames of a row
_FRAMES_IN_ROW = 8
_BAR_HEIGHT, _BAR_STEP, _MOST_BARS = 20, 30, 20
_EVIDENCE_HEIGHT = 46


def draw_answer(predictor: Predictor, answer: Answer) -> Image.Image:
    """The picture of an answer with a clip, about 1400 pixels wide."""
    assert answer.clip is not None
    best = answer.predictions[0]
    views = predictor.protocol.num_views
    maps = predictor.activation_maps(answer.clip, best.index)  # [T, h, w]
    return compose(answer.path, answer.clip, answer.predictions, maps, num_views=views)


def compose(
    path: str,
    clip: np.ndarray,
    predictions: list[Prediction],
    maps: np.ndarray,
    *,
    num_views: int = 1,
) -> Image.Image:
    """Draws the picture.

    Args:
        path: of the video, for the title.
        clip: uint8 `[T, S, S, 3]`, the first of the views.
        predictions: best first, at least one; `_MOST_BARS` are shown.
        maps: of the best class in that clip, float32 `[T, h, w]`.
        num_views: that the predictions are averaged over.
    """
    predictions = predictions[:_MOST_BARS]
    frames = len(clip)
    columns = min(frames, _FRAMES_IN_ROW)
    rows = -(-frames // columns)
    side = (_STRIP_WIDTH - (columns - 1) * _GAP) // columns
    row_height = 2 * side + _GAP + _EVIDENCE_HEIGHT + 40
    top = _MARGIN + 40 + len(predictions) * _BAR_STEP + 24
    canvas = Image.new("RGB", (_STRIP_WIDTH + 2 * _MARGIN, top + rows * row_height + 30), PAPER)
    draw = ImageDraw.Draw(canvas)
    title = os.path.basename(path)
    text(draw, (_MARGIN, _MARGIN + 8), title, size=22, width=_STRIP_WIDTH)
    _draw_bars(draw, predictions, _MARGIN + 50)
    strength = _strength(maps)
    evidence = maps.mean((1, 2))
    for row in range(rows):
        part = slice(row * columns, (row + 1) * columns)
        y = top + row * row_height
        _draw_frames(canvas, clip[part], strength[part], y, side)
        _draw_evidence(draw, evidence, range(frames)[part], y + 2 * side + _GAP + 8, side)
    label = predictions[0].label
    shown = "" if num_views == 1 else f"the first of {num_views} views; "
    note = f"bright: what speaks for {label}; bars: each frame's evidence (logit: mean + bias)"
    text(draw, (_MARGIN, canvas.height - 24), shown + note, size=14, color=GREY, width=_STRIP_WIDTH)
    return canvas


def _draw_bars(draw: ImageDraw.ImageDraw, predictions: list[Prediction], y: int) -> None:
    label_width, bar_width = 380, _STRIP_WIDTH - 380 - 90
    for place, (_, label, score) in enumerate(predictions):
        middle = y + place * _BAR_STEP + _BAR_HEIGHT / 2
        text(draw, (_MARGIN, middle), label, size=18, width=label_width - 16)
        left, above = _MARGIN + label_width, middle - _BAR_HEIGHT / 2
        box = (left, above, left + bar_width, above + _BAR_HEIGHT)
        draw.rounded_rectangle(box, 4, fill=FAINT)
        filled = max(round(score * bar_width), 3)
        color = PALETTE[0] if place == 0 else GREY
        draw.rounded_rectangle((left, above, left + filled, above + _BAR_HEIGHT), 4, fill=color)
        text(draw, (left + bar_width + 14, middle), f"{score:.1%}", size=18)


def _draw_frames(
    canvas: Image.Image, clip: np.ndarray, strength: np.ndarray, y: int, side: int
) -> None:
    for i, (frame, values) in enumerate(zip(clip, strength, strict=True)):
        x = _MARGIN + i * (side + _GAP)
        image = Image.fromarray(frame).resize((side, side), Image.Resampling.LANCZOS)
        canvas.paste(image, (x, y))
        map_ = np.clip(smooth(values, side), 0, 1)
        grey = np.asarray(image.convert("L"), np.float32)[..., None].repeat(3, -1)
        share = 0.25 + 0.55 * map_[..., None]
        blend = (1 - share) * grey + share * heat(map_).astype(np.float32)
        canvas.paste(Image.fromarray(blend.astype(np.uint8)), (x, y + side + _GAP))


def _draw_evidence(
    draw: ImageDraw.ImageDraw, evidence: np.ndarray, frames: range, y: int, side: int
) -> None:
    """Bars around a zero line, scaled to the strongest frame of the clip."""
    largest = float(np.abs(evidence).max()) or 1.0
    below = float(-min(evidence.min(), 0.0)) / largest
    zero = y + _EVIDENCE_HEIGHT * (1 - below / (1 + below) if below else 1)
    unit = _EVIDENCE_HEIGHT / (1 + below)
    for column, i in enumerate(frames):
        x = _MARGIN + column * (side + _GAP)
        value = float(evidence[i])
        end = zero - value / largest * unit
        color = PALETTE[0] if value >= 0 else PALETTE[1]
        draw.rectangle(
            (x + side * 0.25, min(zero, end), x + side * 0.75, max(zero, end)), fill=color
        )
        draw.line((x, zero, x + side, zero), fill=GREY)
        words = f"frame {i + 1}   {value:+.1f}"
        text(
            draw, (x + side / 2, y + _EVIDENCE_HEIGHT + 14), words, size=14, color=INK, anchor="mm"
        )


def _strength(maps: np.ndarray) -> np.ndarray:
    """Evidence for the class on one scale for all frames, 0 to 1; evidence against it is 0."""
    positive = np.maximum(maps, 0)
    return positive / max(float(positive.max()), 1e-6)
