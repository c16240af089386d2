"""Frames with their answer on them: pictures, a video of them, a window that shows them."""

from __future__ import annotations

import io
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageDraw, ImageFont

from tsm_jax.deploy.prediction import Prediction
from tsm_jax.errors import UserError
from tsm_jax.figures import COLORS, short
from tsm_jax.files import reason, replacing

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")

_SMALLEST_SIDE = 360  # pixels of the short side; letters would not fit into less
_TICKS = 1000  # of a second, as times are stored
_NAME_LENGTH = 32  # letters


def annotate(frame: np.ndarray, answer: Prediction, scores: np.ndarray) -> np.ndarray:
    """The frame with the answer and its score below, and a bar for it.

    Args:
        frame: uint8 `[H, W, 3]`; a small one is enlarged by a whole number.
        answer: that is shown.
        scores: of all classes, float32 `[K]`.

    Returns:
        uint8, of even height and width.
    """
    height, width = frame.shape[:2]
    factor = -(-_SMALLEST_SIDE // min(height, width))
    size = [side * factor // 2 * 2 for side in (width, height)]
    image = Image.fromarray(frame).resize((size[0], size[1]), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image, "RGBA")
    unit = min(size) // 24
    top = size[1] - 3 * unit
    draw.rectangle((0, top, *size), fill=(0, 0, 0, 170))
    end = round(float(scores[answer.index]) * size[0])
    draw.rectangle((0, size[1] - unit // 3, end, size[1]), fill=COLORS[0])
    font = ImageFont.load_default(1.5 * unit)
    name = answer.label if answer.label.isascii() else f"{answer.index} {answer.label}"
    where = {"font": font, "fill": "white"}
    middle = top + 1.4 * unit
    draw.text((unit, middle), short(name, _NAME_LENGTH), anchor="lm", **where)
    draw.text((size[0] - unit, middle), f"{answer.score:.0%}", anchor="rm", **where)
    return np.asarray(image)


class AnnotatedVideo:
    """Writes frames to a video, H.264; enter it to write. It is complete or not there.

    Args:
        path: ends with one of `VIDEO_SUFFIXES`.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: str):
        self._path = path
        self._opened = ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> AnnotatedVideo:
        partial = self._opened.enter_context(replacing(self._path))
        kind = {"mkv": "matroska"}.get(self._path[-3:].lower(), self._path[-3:].lower())
        self._container = self._opened.enter_context(av.open(partial, "w", format=kind))
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None and self._stream is not None:
                self._container.mux(self._stream.encode(None))
        finally:
            self._opened.__exit__(*error)

    def show(self, frame: np.ndarray, time: float) -> bool:
        """Writes a frame, at so many seconds; True, because nobody closes a file."""
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=_TICKS)
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, _TICKS)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self._last = picture.pts = max(self._last + 1, round(time * _TICKS))
        picture.time_base = Fraction(1, _TICKS)
        try:
            self._container.mux(self._stream.encode(picture))
        except (FFmpegError, OSError) as error:
            raise UserError(f"cannot write {self._path}: {reason(error)}") from error
        return True


class Window:
    """Shows frames in a window; enter it to open it.

    Raises:
        UserError: there is no screen, or Python has no tkinter.
    """

    def __init__(self, title: str):
        self._title = title
        self._root: Any = None

    def __enter__(self) -> Window:
        try:
            import tkinter

            self._root = tkinter.Tk(className="tsm")
        except ImportError:
            raise UserError(
                "a window needs tkinter, which this Python lacks (python3-tk on Debian): give"
                " --visualize a .mp4 instead"
            ) from None
        except tkinter.TclError as error:
            raise UserError(
                f"cannot open a window ({reason(error)}): give --visualize a .mp4 instead"
            ) from None
        self._root.title(self._title)
        self._root.resizable(False, False)
        self._root.protocol("WM_DELETE_WINDOW", self._close)
        self._make_picture = tkinter.PhotoImage
        self._picture: Any = None
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        return self

    def __exit__(self, *error: Any) -> None:
        self._close()

    def show(self, frame: np.ndarray, time: float) -> bool:
        """Shows a frame at once; False when somebody has closed the window."""
        if self._root is not None:
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "PPM")
            self._picture = self._make_picture(data=file.getvalue(), format="PPM")
            self._label.configure(image=self._picture)
            self._root.update()
        return self._root is not None

    def _close(self) -> None:
        if self._root is not None:
            self._root.destroy()
            self._root = None


Display = AnnotatedVideo | Window


def check_suffix(path: str) -> None:
    """Raises a UserError unless a video can be written under this name."""
    if not path.lower().endswith(VIDEO_SUFFIXES):
        names = ", ".join(VIDEO_SUFFIXES)
        raise UserError(f"--visualize {path}: give `window`, or a video to write ({names})")
