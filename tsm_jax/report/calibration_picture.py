"""The reliability diagram: how often answers of a confidence are right, and how many there are."""

from __future__ import annotations

from PIL import Image, ImageDraw

from tsm_jax.deploy.drawing import FAINT, GREY, INK, PALETTE, PAPER, text
from tsm_jax.report.calibration import Calibration

_WIDTH, _HEIGHT = 620, 640
_LEFT, _RIGHT = 76, 24
_TOP, _BOTTOM = 112, 430  # of the diagram
_COUNTS_TOP, _COUNTS_BOTTOM = 478, 580  # of the histogram below
_OVERCONFIDENT = "#f2b48a"
_SCALE = 2  # drawn larger and reduced, for smooth lines


def draw_calibration(calibration: Calibration) -> Image.Image:
    """Bars of accuracy by confidence against the diagonal, and the number of clips by confidence.

    Where a bar ends below the mean confidence of its clips the gap is orange: the network is too
    sure of itself there.
    """
    canvas = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), PAPER)
    draw = ImageDraw.Draw(canvas)
    _draw_grid(draw)
    largest = max(b.count for b in calibration.bins)
    for b in calibration.bins:
        if b.count:
            left, right = _x(b.low) + 1.5, _x(b.high) - 1.5
            _box(draw, left, _y(b.accuracy), right, _y(0), PALETTE[0])
            if b.accuracy < b.confidence:
                _box(draw, left, _y(b.confidence), right, _y(b.accuracy), _OVERCONFIDENT)
            height = max(b.count / largest * (_COUNTS_BOTTOM - _COUNTS_TOP), 1)
            _box(draw, left, _COUNTS_BOTTOM - height, right, _COUNTS_BOTTOM, GREY)
    diagonal = (_x(0) * _SCALE, _y(0) * _SCALE, _x(1) * _SCALE, _y(1) * _SCALE)
    draw.line(diagonal, fill=INK, width=2 * _SCALE)
    canvas = canvas.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
    _draw_words(ImageDraw.Draw(canvas), calibration, largest)
    return canvas


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _BOTTOM - share * (_BOTTOM - _TOP)


def _box(
    draw: ImageDraw.ImageDraw, left: float, top: float, right: float, bottom: float, color: str
) -> None:
    draw.rectangle([value * _SCALE for value in (left, top, right, bottom)], fill=color)


def _draw_grid(draw: ImageDraw.ImageDraw) -> None:
    for level in (0, 0.2, 0.4, 0.6, 0.8, 1):
        y = _y(level) * _SCALE
        draw.line((_x(0) * _SCALE, y, _x(1) * _SCALE, y), fill=FAINT, width=_SCALE)
    y = _COUNTS_BOTTOM * _SCALE
    draw.line((_x(0) * _SCALE, y, _x(1) * _SCALE, y), fill=FAINT, width=_SCALE)


def _draw_words(draw: ImageDraw.ImageDraw, calibration: Calibration, largest: int) -> None:
    text(draw, (24, 28), "Reliability", size=20)
    note = (
        f"ECE {calibration.expected_error:.3f}   mean confidence {calibration.confidence:.1%}"
        f"   accuracy {calibration.accuracy:.1%}"
    )
    text(draw, (24, 58), note, size=15, color=GREY)
    for level in (0, 0.2, 0.4, 0.6, 0.8, 1):
        text(draw, (_LEFT - 10, _y(level)), f"{level:.0%}", size=13, color=GREY, anchor="rm")
        position = (_x(level), _COUNTS_BOTTOM + 14)
        text(draw, position, f"{level:.0%}", size=13, color=GREY, anchor="mm")
    legend = ((PALETTE[0], "right answers", 130), (_OVERCONFIDENT, "too confident by", 0))
    x = _LEFT
    for color, words, width in legend:
        draw.rounded_rectangle((x, _TOP - 22, x + 12, _TOP - 10), 3, fill=color)
        text(draw, (x + 18, _TOP - 16), words, size=13)
        x += width
    text(draw, (_LEFT, _COUNTS_TOP - 16), f"clips (highest bar: {largest})", size=13)
    middle = (_x(0.5), _COUNTS_BOTTOM + 38)
    text(draw, middle, "confidence: score of the best class", size=14, anchor="mm")
