"""Answers live streams, frame by frame, over WebSockets.

Each message of a client is a JPEG image; each answer is JSON, as in a line of
`tsm stream --output`. A connection is one stream, whose state is kept here.
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

# The close code of an error is this plus its HTTP status.
_CLOSE_CODES = 4000

# Time limit for a client to receive an answer.
_SEND_SECONDS = 10

_EARLY = 0.25  # fraction of the time between two frames: a client's clock differs from ours


class Streams:
    """Follows streams with one network.

    Raises:
        UserError: the network's frame rate is not known.
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
                f"{artifact.folder} does not store the frame rate of its training: export it again"
                " with --fps"
            )
        self._active: set[NewestFrame] = set()
        self._stopping = False

    def __len__(self) -> int:
        """Number of open streams."""
        return len(self._active)

    def stop(self) -> None:
        """Ends all streams, after answering the frames already received, and refuses new ones."""
        self._stopping = True
        for frames in self._active:
            frames.end(_stopping())

    async def follow(self, websocket: WebSocket) -> None:
        """Answers a client's frames until the client or the service ends the stream."""
        await _accept(websocket)
        try:
            await self._follow(websocket)
        except Refused as refused:
            await _close(websocket, refused)
        except (WebSocketDisconnect, TimeoutError):
            pass  # the client is gone or does not read: see the access log
        except Exception as error:
            _logger.error("stream %s", websocket.scope["tsm.id"], exc_info=error)
            refused = Refused("internal", "error of the service or model: see the service's log")
            await _close(websocket, refused)

    async def _follow(self, websocket: WebSocket) -> None:
        if websocket.query_params:
            raise Refused("bad_option", "a stream accepts no options")
        if self._stopping:
            raise _stopping()
        if self._engine.running is None:
            raise Refused("not_ready", "the network is being loaded: try again")
        if len(self._active) >= self._limits.streams:
            raise Refused("busy", f"{len(self._active)} streams are already open: try again")
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
                    raise Refused("idle", f"no frame arrived for {seconds:g} seconds") from None
                if message["type"] == "websocket.disconnect":
                    frames.forget()
                    raise WebSocketDisconnect(message["code"])
                if not message.get("bytes"):
                    raise Refused("bad_request", "send each frame as a binary message with a JPEG")
                frames.put(message["bytes"])
        except Exception as error:  # raised when the next frame is taken
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
    """Returns the answer's warning if the network sees too few frames, see `too_slow`."""
    if (found := too_slow(times, rate)) is None:
        return {}
    return {
        "warning": f"the network sees {found:.3g} frames a second but was trained with {rate:g}:"
        " motion looks too fast to it"
    }


async def refuse_stream(websocket: WebSocket, refused: Refused) -> None:
    """Accepts a stream only to send an error, because browsers cannot read a refused handshake."""
    await _accept(websocket)
    await _close(websocket, refused)


def _stopping() -> Refused:
    return Refused("stopping", "the service is shutting down: connect again")


async def _accept(websocket: WebSocket) -> None:
    offered = websocket.scope["subprotocols"]
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)


async def _close(websocket: WebSocket, refused: Refused) -> None:
    with suppress(WebSocketDisconnect, TimeoutError):
        await _send(websocket, refused.values(websocket.scope["tsm.id"]))
        await websocket.close(_CLOSE_CODES + refused.status, refused.code)


async def _send(websocket: WebSocket, values: dict[str, Any]) -> None:
    """Raises a TimeoutError if the client does not read."""
    async with asyncio.timeout(_SEND_SECONDS):
        await websocket.send_text(to_json(values).decode())


class Frame(NamedTuple):
    """A JPEG image and its arrival time, in seconds from the first one."""

    time: float
    picture: bytes


class NewestFrame:
    """The newest frame of a client, handed out at most `rate` times a second.

    Clients that send more frames do not get more answers, because the network has to see time pass
    as in training.

    Args:
        rate: frames per second.
        count: called with the number of dropped frames whenever a frame is taken.

    Attributes:
        dropped: number of frames that would have been handed out if taken in time, but were
            replaced by later ones.
    """

    def __init__(self, rate: float, count: Callable[[int], None]):
        self.dropped = 0
        self._period, self._count = 1 / rate, count
        self._first: float | None = None
        self._due = 0.0  # when the next frame may be taken
        self._waiting: Frame | None = None
        self._replaced = 0  # number of frames since one was taken
        self._sought_since = math.inf
        self._end: Exception | None = None
        self._changed = asyncio.Event()

    def put(self, picture: bytes) -> None:
        """Replaces the waiting frame."""
        now = time.monotonic()
        if self._first is None:
            self._first = self._due = now
        self._replaced += self._waiting is not None
        self._waiting = Frame(now - self._first, picture)
        self._changed.set()

    async def take(self) -> Frame:
        """Returns the newest frame, as soon as it is due.

        Raises:
            Exception: the one given to `end`, once no frame is waiting.
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
        """Seconds that `take` has waited while no frame was there; not positive otherwise."""
        return time.monotonic() - self._sought_since if self._waiting is None else 0.0

    def _early(self) -> float:
        return self._due - _EARLY * self._period - time.monotonic()

    def end(self, error: Exception) -> None:
        """Makes `take` raise an error once no frame is waiting: no more will come."""
        self._end = self._end or error
        self._changed.set()

    def forget(self) -> None:
        """Discards the waiting frame: nobody waits for its answer."""
        self._waiting = None
