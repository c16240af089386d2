"""Frames from a video file, a camera or the address of a stream, as they arrive.

A file is read as fast as its frames are consumed. A camera does not wait: its consumer gets the
newest frame, and frames that are not consumed in time are dropped and counted.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from functools import partial
from typing import NamedTuple, cast

import av
import cv2
import numpy as np
from av.error import FFmpegError
from av.video.stream import VideoStream

from tsm_jax.data.decode import Rgb, frame_rate, open_video, shown_frames
from tsm_jax.errors import UserError
from tsm_jax.files import reason
from tsm_jax.weights.model_directory import without_folders

_RETRY = 1.0  # seconds between attempts to reopen a source
_TIMEOUT = 10.0  # seconds without a frame after which an address counts as lost
_EARLY = 0.25  # fraction of the time between picked frames: a camera's clock differs from ours

SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp", "srt")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class Frame(NamedTuple):
    """A frame of a stream."""

    time: float  # seconds from the first one
    pixels: np.ndarray  # uint8 `[H, W, 3]`, RGB
    picked: bool  # whether it is for the network


class Gap(NamedTuple):
    """Missing frames, for the reason in `text`: earlier frames say nothing about later ones."""

    text: str


Moment = Frame | Gap


class Picker:
    """Picks a frame about every `1 / rate` seconds, and `rate` per second on average; 0 picks all.

    Called with the time of each frame in seconds; returns whether to pick it.
    """

    def __init__(self, rate: float):
        self._period = 1 / rate if rate else 0.0
        self._next = self._period / 2  # the middle of an interval, like the frames of a clip

    def __call__(self, time: float) -> bool:
        if self._next - time > 2 * self._period:  # the clock was set back
            self._next = time
        if time < self._next - _EARLY * self._period:
            return False
        self._next += self._period
        if self._next <= time:  # there were no frames for a while
            self._next = time + self._period
        return True


class Input:
    """A source of frames.

    Args:
        source: a camera number, an address, or the path of a video file.
        rate: frames per second for the network; 0 for all.
        every_frame: also yield frames that are not picked, for display.

    Attributes:
        name: of the source, for messages; without the password of an address.
        is_live: whether frames arrive in real time.
        dropped: number of picked frames that arrived while the previous one was still waiting.

    Raises:
        UserError: the camera, address or video cannot be opened.
    """

    def __init__(self, source: str, rate: float, *, every_frame: bool = False):
        address = _ADDRESS.match(source)
        self.is_live = source.isdecimal() or address is not None
        self.name = f"camera {source}" if source.isdecimal() else without_folders(source)
        self.dropped = 0
        self._source, self._rate, self._every = source, rate, every_frame
        if address and address[1].lower() not in SCHEMES:
            raise UserError(
                f"{self.name} is not the address of a stream ({', '.join(SCHEMES)}); for a video"
                " file, use its path"
            )
        if self.is_live:
            self._waiting: Moment | None = None
            self._arrived = threading.Condition()
            self._ended = False
            try:
                self._frames = _opened(source)
            except _SourceLostError as error:
                raise UserError(f"cannot open {self.name}: {error}") from None
        else:
            with open_video(source):  # raises an error that says what is wrong
                self.name = source

    def __iter__(self) -> Iterator[Moment]:
        """Yields frames in order; those of a camera never end."""
        return self._live() if self.is_live else self._file()

    def _file(self) -> Iterator[Moment]:
        picked = Picker(self._rate)
        with open_video(self._source) as stream:
            rate = float(frame_rate(stream))
            chosen: list[bool] = []

            def wanted(frame: int) -> bool:
                chosen.append(picked((frame + 0.5) / rate))
                return self._every or chosen[-1]

            for i, pixels in shown_frames(self._source, stream, rate, wanted):
                if pixels is not None:
                    yield Frame((i + 0.5) / rate, pixels, chosen[-1])

    def _live(self) -> Iterator[Moment]:
        reader = threading.Thread(target=self._read, name="camera", daemon=True)
        reader.start()
        try:
            while True:
                with self._arrived:
                    while self._waiting is None:
                        self._arrived.wait(1.0)  # with a timeout, so that Ctrl-C works
                    moment, self._waiting = self._waiting, None
                    self._arrived.notify_all()  # `_hand_over` may be waiting
                yield moment
        finally:
            with self._arrived:
                self._ended = True
                self._arrived.notify_all()
            reader.join(_TIMEOUT)

    def _read(self) -> None:
        """Hands over frames, in a thread, because a busy consumer could not tell their arrival."""
        picked, start = Picker(self._rate), time.monotonic()
        while not self._ended:
            opened = time.monotonic() - start
            with closing(self._frames):
                try:
                    for seconds, pixels in self._frames:
                        now = time.monotonic() - start if seconds is None else opened + seconds
                        pick = picked(now)
                        if pick or self._every:
                            self._hand_over(Frame(now, pixels(), pick))
                        if self._ended:
                            return
                    why = "it ended"
                except _SourceLostError as error:
                    why = str(error)
            self._hand_over(Gap(f"{self.name} was lost ({why}): waiting for it"))
            self._frames = self._reopened()
            self._hand_over(Gap(f"{self.name} is back"))

    def _hand_over(self, moment: Moment) -> None:
        with self._arrived:
            waiting = self._waiting
            if isinstance(waiting, Gap):  # never dropped
                self._arrived.wait_for(lambda: self._waiting is None or self._ended)
            elif isinstance(moment, Frame) and waiting is not None and waiting.picked:
                if not moment.picked:
                    return
                self.dropped += 1
            self._waiting = moment
            self._arrived.notify_all()

    def _reopened(self) -> _Frames:
        while not self._ended:
            time.sleep(_RETRY)
            with suppress(_SourceLostError):
                return _opened(self._source)
        return (arrival for arrival in ())


class _SourceLostError(Exception):
    """A camera or an address delivers no more frames."""


# Seconds since the source was opened, None if it has no time stamps; a function for the pixels.
_Arrival = tuple[float | None, Callable[[], np.ndarray]]
_Frames = Generator[_Arrival, None, None]


def _opened(source: str) -> _Frames:
    """Opens a camera or an address, and reads its first frame.

    Raises:
        _SourceLostError: there are no frames.
    """
    frames = _camera(source) if source.isdecimal() else _address(source)
    try:
        first = next(frames)
    except StopIteration:
        raise _SourceLostError("it delivers no frames") from None

    def all_of_them() -> _Frames:
        with closing(frames):
            yield first
            yield from frames

    return all_of_them()


def _camera(number: str) -> _Frames:
    # OpenCV prints a page about a missing camera.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    camera = cv2.VideoCapture(int(number))
    try:
        if not camera.isOpened():
            raise _SourceLostError("no camera has this number, or access to it is denied")

        def pixels() -> np.ndarray:
            read, image = camera.retrieve()
            if not read:
                raise _SourceLostError("it delivers no images")
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

        while camera.grab():
            yield None, pixels
        raise _SourceLostError("it delivers no frames")
    finally:
        camera.release()


def _address(address: str) -> _Frames:
    # RTSP over TCP: packets lost by UDP would become grey stripes, which the network would answer.
    options = {"rtsp_transport": "tcp"} if address.lower().startswith("rtsp") else {}
    try:
        with av.open(address, options=options, timeout=_TIMEOUT) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise _SourceLostError("it has no video")
            if address.lower().startswith("http") and container.duration:
                raise _SourceLostError("it is a finite video, not a live stream: download it")
            first: av.VideoFrame | None = None
            for frame in container.decode(cast(VideoStream, stream)):
                if first is None:
                    first, to_rgb = frame, Rgb(frame)
                known = first.time is not None and frame.time is not None
                seconds = frame.time - first.time if known else None
                yield seconds, partial(to_rgb, frame)
    except (FFmpegError, OSError, ValueError) as error:
        raise _SourceLostError(reason(error)) from error
