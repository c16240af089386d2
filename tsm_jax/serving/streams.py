"""Frames of live streams in, what the network sees in them out, over WebSockets.

A message of a client is a JPEG picture, an answer the JSON of a line of `tsm stream --output`. A
connection is a stream, whose state is kept here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from starlette.websockets import WebSocket, WebSocketDisconnect

from tsm_jax.deploy.artifact import Artifact
from tsm_jax.deploy.stream import JUDGED_BY, Smoother, too_slow
from tsm_jax.errors import UserError
from tsm_jax.serving.decoding import Decoders
from tsm_jax.serving.engine import EngineProcess
from tsm_jax.serving.gate import SUBPROTOCOL, Metrics, to_json
from tsm_jax.serving.limits import Limits, Refused

_logger = logging.getLogger(__name__)

# The close code of an error is this and its HTTP status.
_CLOSE_CODES = 4000

# For a client to take an answer.
_SEND_SECONDS = 10

_EARLY = 0.25  # of the time between two frames: a client's clock is not ours


class Streams:
    """Follows streams with one network.

    Raises:
        UserError: nobody knows the network's frame rate.
    """

    def __init__(
        self,
        artifact: Artifact,
        limits: Limits,
        decoders: Decoders,
        engine: EngineProcess,
        metrics: Metrics,
    ):
        self._artifact, self._limits, self._metrics = artifact, limits, metrics
        self._decoders, self._engine = decoders, engine
        self._rate = artifact.preprocessing.frame_rate
        if not self._rate:
            raise UserError(
                f"{artifact.folder} does not say at how many frames a second it was trained:"
                " export it again with --fps"
            )
        self._active: set[NewestFrame] = set()
        self._stopping = False

    def __len__(self) -> int:
        """Streams that are followed."""
        return len(self._active)

    def stop(self) -> None:
        """Ends them, each after the answers to the frames that have come, and begins no more."""
        self._stopping = True
        for frames in self._active:
            frames.end(_stopping())

    async def follow(self, websocket: WebSocket) -> None:
        """Answers a client's frames until one of the two ends it."""
        await _accept(websocket)
        try:
            await self._follow(websocket)
        except Refused as refused:
            await _close(websocket, refused)
        except (WebSocketDisconnect, TimeoutError):
            pass  # the client is gone, or takes nothing: see the access log
        except Exception as error:
            _logger.error("stream %s", websocket.scope["tsm.id"], exc_info=error)
            refused = Refused("internal", "a defect of the service, or of the model: see the log")
            await _close(websocket, refused)

    async def _follow(self, websocket: WebSocket) -> None:
        if websocket.query_params:
            raise Refused("bad_option", "a stream takes no options")
        if self._stopping:
            raise _stopping()
        if self._engine.running is None:
            raise Refused("not_ready", "the network is being loaded: try again")
        if len(self._active) >= self._limits.streams:
            raise Refused("busy", f"{len(self._active)} streams are followed: try again")
        frames = NewestFrame(self._rate, self._metrics.dropped.inc)
        self._active.add(frames)
        reading = asyncio.create_task(self._read(websocket, frames))
        try:
            await self._answer(websocket, frames)
        finally:
            reading.cancel()
            self._active.remove(frames)

    async def _read(self, websocket: WebSocket, frames: NewestFrame) -> None:
        seconds = self._limits.idle_seconds
        try:
            while True:
                try:
                    async with asyncio.timeout(seconds):
                        message = await websocket.receive()
                except TimeoutError:
                    if frames.seconds_sought < seconds:
                        continue  # the client waits for an answer
                    raise Refused("idle", f"no frame came for {seconds:g} seconds") from None
                if message["type"] == "websocket.disconnect":
                    frames.forget()
                    raise WebSocketDisconnect(message["code"])
                if not message.get("bytes"):
                    raise Refused("bad_request", "send each frame as a binary message, a JPEG")
                frames.put(message["bytes"])
        except Exception as error:  # it is raised to whoever takes the next frame
            frames.end(error)

    async def _answer(self, websocket: WebSocket, frames: NewestFrame) -> None:
        artifact, state = self._artifact, None
        smoother = Smoother(artifact.labels, frames=artifact.num_segments, source=artifact.folder)
        times: deque[float] = deque(maxlen=JUDGED_BY)
        while True:
            frame = await frames.take()
            start = time.perf_counter()
            async with self._decoders.decoding(frame.picture) as found:
                (window,) = [each async for each in found]
            decoded = time.perf_counter()
            logits, state = await self._engine.step(window.views[0], state)
            self._metrics.decode_seconds.observe(decoded - start)
            self._metrics.compute_seconds.observe(time.perf_counter() - decoded)
            self._metrics.frames.inc()
            times.append(frame.time)
            values = smoother.update(logits[0]).values(frame.time, frames.dropped)
            await _send(websocket, {**values, **warning_of(times, self._rate)})


def warning_of(times: Sequence[float], rate: float) -> dict[str, str]:
    """What an answer says, too, if the network sees too few frames: see `too_slow`."""
    if (found := too_slow(times, rate)) is None:
        return {}
    return {
        "warning": f"the network sees {found:.3g} frames a second and was trained with {rate:g}:"
        " all that moves looks faster to it"
    }


async def refuse_stream(websocket: WebSocket, refused: Refused) -> None:
    """Says why there are no streams, where a browser can read it: in a stream."""
    await _accept(websocket)
    await _close(websocket, refused)


def _stopping() -> Refused:
    return Refused("stopping", "the service was told to stop: connect again")


async def _accept(websocket: WebSocket) -> None:
    offered = websocket.scope["subprotocols"]
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)


async def _close(websocket: WebSocket, refused: Refused) -> None:
    with suppress(WebSocketDisconnect, TimeoutError):
        await _send(websocket, refused.values(websocket.scope["tsm.id"]))
        await websocket.close(_CLOSE_CODES + refused.status, refused.code)


async def _send(websocket: WebSocket, values: dict[str, Any]) -> None:
    """Raises a TimeoutError if the client takes nothing."""
    async with asyncio.timeout(_SEND_SECONDS):
        await websocket.send_text(to_json(values).decode())


class Frame(NamedTuple):
    """A picture, and when it came, in seconds from the first one."""

    time: float
    picture: bytes


class NewestFrame:
    """The newest frame of a client, at most `rate` times a second; `count` is told how many were
    dropped.

    Whoever sends more is not answered more often: the network has to see time pass as in training.

    Attributes:
        dropped: frames that would have been given out, had they been asked for in time, and for
            which later ones were.
    """

    def __init__(self, rate: float, count: Callable[[int], None]):
        self.dropped = 0
        self._period, self._count = 1 / rate, count
        self._first: float | None = None
        self._due = 0.0  # when the next one is to be given out
        self._waiting: Frame | None = None
        self._replaced = 0  # frames, since one was given out
        self._sought_since = math.inf
        self._end: Exception | None = None
        self._changed = asyncio.Event()

    def put(self, picture: bytes) -> None:
        """Replaces what waits."""
        now = time.monotonic()
        if self._first is None:
            self._first = self._due = now
        self._replaced += self._waiting is not None
        self._waiting = Frame(now - self._first, picture)
        self._changed.set()

    async def take(self) -> Frame:
        """The newest one, as soon as it is due.

        Raises:
            Exception: that of `end`, once nothing waits.
        """
        self._sought_since = time.monotonic()
        while self._waiting is None or (early := self._early()) > 0:
            if self._waiting is not None:
                await asyncio.sleep(early)
            elif self._end is not None:
                raise self._end
            else:
                self._changed.clear()
                await self._changed.wait()
        frame, self._waiting, self._sought_since = self._waiting, None, math.inf
        missed = max(0, int((time.monotonic() - self._due) / self._period))
        self._due += (missed + 1) * self._period
        dropped, self._replaced = min(missed, self._replaced), 0
        self.dropped += dropped
        self._count(dropped)
        return frame

    @property
    def seconds_sought(self) -> float:
        """For which somebody has been waiting for a frame and none for them."""
        return time.monotonic() - self._sought_since if self._waiting is None else 0.0

    def _early(self) -> float:
        return self._due - _EARLY * self._period - time.monotonic()

    def end(self, error: Exception) -> None:
        """No more will come."""
        self._end = self._end or error
        self._changed.set()

    def forget(self) -> None:
        """Nobody waits for an answer."""
        self._waiting = None
