"""Draws answers on frames, and shows the frames in a video file or a window."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

_SMALLEST_SIDE = 360  # pixels of the short side; text would not fit into less
_TICKS = 1000  # per second: the resolution of stored times
_NAME_LENGTH = 32  # characters


def annotate(frame: np.ndarray, answer: Prediction, scores: np.ndarray) -> np.ndarray:
    """Draws the answer, its score and a bar of the score at the bottom of a frame.

    Args:
        frame: uint8 `[H, W, 3]`; a small one is enlarged by a whole factor.
        answer: the class to show.
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


# Takes an annotated frame and its time in seconds; returns False once the window is closed.
Show = Callable[[np.ndarray, float], bool]


@contextmanager
def annotated_video(path: str) -> Iterator[Show]:
    """Writes frames to an H.264 video, whose name must end with one of `VIDEO_SUFFIXES`.

    The file appears once it is complete.

    Raises:
        UserError: the file cannot be written.
    """
    stream: Any = None
    last = -1
    kind = {"mkv": "matroska"}.get(path[-3:].lower(), path[-3:].lower())
    with replacing(path) as partial, av.open(partial, "w", format=kind) as container:

        def show(frame: np.ndarray, time: float) -> bool:
            nonlocal stream, last
            if stream is None:
                stream = container.add_stream("libx264", rate=_TICKS)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = Fraction(1, _TICKS)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            last = picture.pts = max(last + 1, round(time * _TICKS))
            picture.time_base = Fraction(1, _TICKS)
            try:
                container.mux(stream.encode(picture))
            except (FFmpegError, OSError) as error:
                raise UserError(f"cannot write {path}: {reason(error)}") from error
            return True

        yield show
        if stream is not None:
            container.mux(stream.encode(None))


@contextmanager
def window(title: str) -> Iterator[Show]:
    """Shows frames in a window, immediately, until the user closes it.

    Raises:
        UserError: there is no screen, or Python has no tkinter.
    """
    try:
        import tkinter

        root = tkinter.Tk(className="tsm")
    except ImportError:
        raise UserError(
            "a window needs tkinter, which this Python lacks: install it (python3-tk on Debian), or"
            " use --visualize with a .mp4 file"
        ) from None
    except tkinter.TclError as error:
        raise UserError(
            f"cannot open a window ({reason(error)}): use --visualize with a .mp4 file"
        ) from None
    is_open, shown = True, None

    def close() -> None:
        nonlocal is_open
        if is_open:
            root.destroy()
        is_open = False

    def show(frame: np.ndarray, time: float) -> bool:
        nonlocal shown
        if is_open:
            file = io.BytesIO()
            Image.fromarray(frame).save(file, "PPM")
            shown = tkinter.PhotoImage(data=file.getvalue(), format="PPM")  # keeps it alive
            label.configure(image=shown)
            root.update()
        return is_open

    root.title(title)
    root.resizable(False, False)
    root.protocol("WM_DELETE_WINDOW", close)
    label = tkinter.Label(root, borderwidth=0)
    label.pack()
    try:
        yield show
    finally:
        close()


def check_suffix(path: str) -> None:
    """Raises a UserError unless a video can be written under this name."""
    if not path.lower().endswith(VIDEO_SUFFIXES):
        names = ", ".join(VIDEO_SUFFIXES)
        raise UserError(f"--visualize {path}: it must be `window` or a video file ({names})")
