"""A timeline as a plot: the classes that lead somewhere, over the seconds of the video."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from tsm_jax.deploy.drawing import FAINT, GREY, PALETTE, PAPER, text
from tsm_jax.deploy.timeline import Moment

_WIDTH, _HEIGHT = 1300, 460
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 70, 330, 60
_SCALE = 2  # drawn larger and reduced, for smooth lines
_RIBBON = 16


def plot_timeline(video: str, moments: Sequence[Moment], labels: Sequence[str]) -> Image.Image:
    """Scores at the middles of the windows, and below them a ribbon of the class that leads.

    Args:
        video: its path, for the title.
        moments: at least one, in order.
        labels: K names.
    """
    scores = np.stack([moment.scores for moment in moments])  # [M, K]
    times = np.array([(moment.start + moment.end) / 2 for moment in moments])
    shown = _leading_classes(scores, len(PALETTE))
    end = moments[-1].end
    canvas = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), PAPER)
    _draw_lines(ImageDraw.Draw(canvas), times / end, scores, shown)
    _draw_ribbon(ImageDraw.Draw(canvas), times / end, scores, shown)
    canvas = canvas.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(canvas)
    text(draw, (_LEFT, 32), os.path.basename(video), size=22, width=_WIDTH - 2 * _LEFT)
    _draw_axes(draw, end)
    _draw_legend(draw, [labels[k] for k in shown], scores[:, shown].max(0))
    return canvas


def _leading_classes(scores: np.ndarray, most: int) -> list[int]:
    """Classes that are the best one somewhere, the most frequent first; then the strongest."""
    wins = np.bincount(scores.argmax(1), minlength=scores.shape[1])
    order = np.lexsort((-scores.max(0), -wins))
    return [int(k) for k in order[: min(most, max(1, int((wins > 0).sum())))]]


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(score: float) -> float:
    return _TOP + (1 - score) * (_HEIGHT - _TOP - _BOTTOM - _RIBBON)


def _draw_lines(
    draw: ImageDraw.ImageDraw, places: np.ndarray, scores: np.ndarray, shown: Sequence[int]
) -> None:
    for level in (0, 0.25, 0.5, 0.75, 1):
        y = _y(level) * _SCALE
        draw.line((_LEFT * _SCALE, y, (_WIDTH - _RIGHT) * _SCALE, y), fill=FAINT, width=_SCALE)
    for color, k in zip(PALETTE, shown, strict=False):
        points = [
            (_x(p) * _SCALE, _y(s) * _SCALE) for p, s in zip(places, scores[:, k], strict=True)
        ]
        if len(points) > 1:
            draw.line(points, fill=color, width=5, joint="curve")
        if len(points) <= 60:
            for x, y in points:
                draw.ellipse((x - 7, y - 7, x + 7, y + 7), fill=color)


def _draw_ribbon(
    draw: ImageDraw.ImageDraw, places: np.ndarray, scores: np.ndarray, shown: Sequence[int]
) -> None:
    """Each window's class, from halfway to the window before to halfway to the next one."""
    edges = np.concatenate([[0.0], (places[1:] + places[:-1]) / 2, [1.0]])
    colors = dict(zip(shown, PALETTE, strict=False))
    top = (_HEIGHT - _BOTTOM) * _SCALE
    for left, right, k in zip(edges[:-1], edges[1:], scores.argmax(1), strict=True):
        box = (_x(left) * _SCALE, top, _x(right) * _SCALE, top + (_RIBBON - 4) * _SCALE)
        draw.rectangle(box, fill=colors.get(int(k), GREY))


def _draw_axes(draw: ImageDraw.ImageDraw, end: float) -> None:
    for level in (0, 0.5, 1):
        text(draw, (_LEFT - 12, _y(level)), f"{level:.0%}", size=15, color=GREY, anchor="rm")
    for tick in np.arange(0, end + 1e-9, _tick(end)):
        position = (_x(tick / end), _HEIGHT - _BOTTOM + _RIBBON + 12)
        text(draw, position, f"{tick:g} s", size=15, color=GREY, anchor="mm")


def _tick(end: float) -> float:
    """A round distance that gives four to ten ticks."""
    raw = end / 8
    unit = 10.0 ** np.floor(np.log10(raw))
    return float(next(unit * step for step in (1, 2, 5, 10) if unit * step >= raw))


def _draw_legend(draw: ImageDraw.ImageDraw, labels: Sequence[str], highest: np.ndarray) -> None:
    left = _WIDTH - _RIGHT + 24
    for place, (color, label, score) in enumerate(zip(PALETTE, labels, highest, strict=False)):
        y = _TOP + 14 + place * 32
        draw.rounded_rectangle((left, y - 7, left + 14, y + 7), 3, fill=color)
        text(draw, (left + 24, y), label, size=16, width=_RIGHT - 120)
        text(draw, (_WIDTH - 20, y), f"{score:.0%}", size=16, color=GREY, anchor="rm")
