"""Decodes uploads and frames of streams to views, in confined processes that can be killed."""

from __future__ import annotations

import asyncio
import io
import signal
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from av.container import InputContainer
from PIL import Image, ImageOps, UnidentifiedImageError

from tsm_jax.data.decode import decode_frames, open_video
from tsm_jax.data.prepare.jobs import JobFailure, ProcessLostError, Workers
from tsm_jax.data.protocols import EvalProtocol, Preprocessing, protocol_of
from tsm_jax.deploy.stream import one_view
from tsm_jax.deploy.videos import Window, windows
from tsm_jax.errors import UnreadableClipError
from tsm_jax.serving import sandbox
from tsm_jax.serving.limits import Limits, Refused

# Processor time for a frame of a stream: a JPEG with thousands of scans would take minutes.
_FRAME_SECONDS = 2


class Task(NamedTuple):
    """A file to decode."""

    path: str
    name: str  # the sender's name for it, for messages
    protocol: str
    window: float | None = None  # of a timeline, in seconds; None for the whole video
    step: float = 0.0  # of a timeline, in seconds


class Decoders:
    """Decoding processes, for use from an event loop."""

    def __init__(self, preprocessing: Preprocessing, num_segments: int, limits: Limits):
        self._decode = _Decode(preprocessing, num_segments, limits)
        self._limits = limits
        self._workers: Workers[Task | bytes, Window | Refused] = Workers(
            self._decode,
            seconds=limits.decode_seconds,
            prepare=self._decode.prepare,
            name="decode",
        )
        # Timelines take long: they share one extra process, so that other requests do not wait.
        self._threads = ThreadPoolExecutor(limits.decoders + 1, "decode")
        self._whole = asyncio.Semaphore(limits.decoders)
        self._timelines = asyncio.Semaphore(1)

    async def start(self) -> None:
        """Starts the processes for whole videos, so that no request has to wait for it.

        Raises:
            UserError: the processes cannot be confined on this system.
            ProcessLostError: a process ended immediately.
        """
        run = asyncio.get_running_loop().run_in_executor
        starts = (run(self._threads, self._workers.start) for _ in range(self._limits.decoders))
        await asyncio.gather(*starts)

    @asynccontextmanager
    async def decoding(
        self, task: Task | bytes
    ) -> AsyncGenerator[AsyncGenerator[Window, None], None]:
        """Yields the windows of a video one by one.

        A whole video is a single window. So is a frame of a stream, given as the bytes of a JPEG,
        whose views are uint8 `[1, 1, S, S, 3]`.

        Raises:
            Refused: decoding fails or exceeds a limit (raised while iterating).
        """
        slides = isinstance(task, Task) and task.window is not None
        async with (
            self._timelines if slides else self._whole,
            aclosing(self._results(task)) as results,
        ):
            yield results

    async def _results(self, task: Task | bytes) -> AsyncGenerator[Window, None]:
        """Starts over, once, if a process is killed before its first window."""
        given = False
        for last in (False, True):
            try:
                async with aclosing(self._attempt(task)) as attempt:
                    async for window in attempt:
                        given = True
                        yield window
                return
            except ProcessLostError as error:
                if given or last:
                    message = "the decoding process was killed: try again"
                    raise Refused("interrupted", message) from error

    async def _attempt(self, task: Task | bytes) -> AsyncGenerator[Window, None]:
        """Raises a ProcessLostError if the process was killed from outside."""
        loop, stream, refused = asyncio.get_running_loop(), self._workers.stream(task), None
        in_thread = False
        try:
            while True:
                in_thread = True
                result = await loop.run_in_executor(self._threads, next, stream, None)
                in_thread = False
                if result is None:
                    break
                if isinstance(result, Window):
                    yield result
                else:  # the last item; the process is free afterwards
                    refused = result if isinstance(result, Refused) else _refusal(result)
        finally:
            if not in_thread:  # otherwise the service is stopping and ends the process
                stream.close()
        if refused is not None:
            raise refused

    @property
    def pids(self) -> list[int]:
        """Ids of the running processes."""
        return self._workers.pids

    def close(self) -> None:
        self._workers.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Decode:
    """The function that decoding processes run."""

    def __init__(self, preprocessing: Preprocessing, num_segments: int, limits: Limits):
        self._preprocessing, self._num_segments = preprocessing, num_segments
        self._limits = limits

    def prepare(self) -> None:
        sandbox.leave_stopping_to_parent()
        sandbox.confine(self._limits.decode_bytes)

    def __call__(self, task: Task | bytes) -> Iterator[Window | Refused]:
        if isinstance(task, bytes):
            sandbox.allow_seconds(_FRAME_SECONDS)
            yield self._frame(task)
        else:
            sandbox.allow_seconds(self._limits.decode_seconds)
            yield from self._video(task)

    def _frame(self, picture: bytes) -> Window | Refused:
        protocol = one_view(protocol_of(self._preprocessing))
        try:
            with Image.open(io.BytesIO(picture), formats=["JPEG"]) as image:
                self._check_pixels("frame", *image.size)
                # Phones store the orientation as a tag, which browsers apply as well.
                upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            return Window(0.0, 0.0, np.ascontiguousarray(protocol.views([upright])))
        except Refused as refused:
            return refused
        except MemoryError:
            return Refused("decoding_too_expensive", "decoding the frame takes too much memory")
        except Exception as error:  # Pillow raises many kinds of exceptions on broken data
            reason = "not a JPEG image" if isinstance(error, UnidentifiedImageError) else str(error)
            return Refused("unreadable_frame", f"cannot decode the frame: {reason[:200]}")

    def _video(self, task: Task) -> Iterator[Window | Refused]:
        protocol = protocol_of(self._preprocessing, task.protocol)
        try:
            rate = self._frame_rate(task.path)
            if task.window is None:
                yield self._whole(task.path, protocol, rate)
            else:
                yield from self._timeline(task, task.window, protocol)
        except Refused as refused:
            yield refused
        except MemoryError:
            yield Refused("decoding_too_expensive", f"decoding {task.name} takes too much memory")
        except UnreadableClipError as error:
            message = " ".join(str(error).replace(task.path, task.name).split())
            yield Refused("unreadable_video", message)

    def _frame_rate(self, path: str) -> float:
        """Returns frames per second; raises Refused if the container declares too large a video."""
        with open_video(path) as stream:
            context, container = stream.codec_context, stream.container
            assert isinstance(container, InputContainer)
            self._check_pixels("video", context.width, context.height)
            self._check_seconds((container.duration or 0) / 1_000_000)
            return float(stream.average_rate or Fraction(25))

    def _check_pixels(self, what: str, width: int, height: int) -> None:
        if width * height > (most := self._limits.video_pixels):
            message = f"the {what} has {width} x {height} pixels: at most {most} are allowed"
            raise Refused("resolution_too_high", message)

    def _check_seconds(self, seconds: float) -> None:
        if seconds > (most := self._limits.video_seconds):
            message = f"the video lasts {seconds:.0f} s: at most {most:g} s are allowed"
            raise Refused("video_too_long", message)

    def _whole(self, path: str, protocol: EvalProtocol, rate: float) -> Window:
        frames = 0

        def choose(num_frames: int) -> np.ndarray:
            nonlocal frames
            frames = num_frames
            self._check_seconds(num_frames / rate)
            return protocol.choose_frames(num_frames, self._num_segments)

        views = protocol.views(decode_frames(path, choose), path)
        return Window(0.0, frames / rate, views)

    def _timeline(self, task: Task, window: float, protocol: EvalProtocol) -> Iterator[Window]:
        found = windows(task.path, protocol, self._num_segments, window=window, step=task.step)
        for number, each in enumerate(found):
            if number == self._limits.windows:
                message = f"the timeline has more than {number} windows: use a longer step"
                raise Refused("video_too_long", message)
            self._check_seconds(each.end)
            yield each


def _refusal(failure: JobFailure) -> Refused | ProcessLostError:
    if failure.kind == "late" or failure.exit_code == -signal.SIGXCPU:
        return Refused("decoding_too_expensive", "decoding takes too long")
    if failure.exit_code == -signal.SIGKILL:  # killed from outside
        return ProcessLostError(failure.reason)
    return Refused("decoding_too_expensive", f"decoding failed: {failure.reason}")
