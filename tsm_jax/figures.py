"""Draws figures with matplotlib as PNG in memory, independently of the user's settings."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tsm_jax.terminal import printable

# Distinguishable for colour-blind readers (Okabe and Ito).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#7b8794"
_DPI = 120
# matplotlib's own font, then fonts for other writing systems on Linux, macOS and Windows.
_FONTS = (
    *("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC"),
    *("Hiragino Sans GB", "Arial Unicode MS", "Microsoft YaHei", "Noto Emoji", "Segoe UI Emoji"),
)


def draw_png(width: float, height: float, draw: Callable[[Figure], None]) -> bytes:
    """Returns the PNG of a figure drawn by `draw`; `width` and `height` are in inches."""
    known = set(font_manager.get_font_names())
    fonts = [name for name in _FONTS if name in known]
    settings = ["default", {"font.family": fonts, "text.parse_math": False}]
    with warnings.catch_warnings(), style.context(settings):
        warnings.simplefilter("ignore")  # a character missing from all fonts is drawn as a box
        figure = Figure((width, height), dpi=_DPI, layout="constrained")
        draw(figure)
        file = io.BytesIO()
        figure.savefig(file, format="png")
    return file.getvalue()


def short(name: str, length: int) -> str:
    """Returns an untrusted name without control codes, cut to `length` characters."""
    name = printable(name)
    return name if len(name) <= length else name[: length - 1] + "…"


def add_grid(*several: Axes) -> None:
    for axes in several:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
