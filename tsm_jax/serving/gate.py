"""The layer around the application: request ids, token, security headers, access log, metrics."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tsm_jax.serving.limits import RETRY_AFTER, Refused

_log = logging.getLogger("tsm_jax.serving.access")

# How much of a refused body is still read, because a client that is still sending may miss an
# answer that arrives together with the end of its connection.
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 4 << 20

CLIENT_GONE = 499  # nginx's status for a client that disconnected; never sent

# With a WebSocket, a browser can send a token only as a subprotocol: this prefix and the token in
# unpadded base64url. The service has to accept one subprotocol, and accepts the other one, `tsm`.
_BEARER = "bearer."
SUBPROTOCOL = "tsm"
STREAM_PATH = "/v1/stream"
# Clients may close with any code from here on; the metrics count them as one.
_PRIVATE_CODES = 3000

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Prometheus metrics of one service."""

    def __init__(self):
        registry = self._registry = CollectorRegistry()
        disable_created_metrics()  # they would add a series per metric that nothing reads

        def count(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=registry)

        def histogram(name: str, about: str, buckets=_SECONDS) -> Histogram:
            return Histogram(name, about, buckets=buckets, registry=registry)

        self.requests = count("tsm_requests", "Answered requests.", "path", "status")
        about = "Time from a prediction's headers to its answer."
        self.request_seconds = histogram("tsm_request_seconds", about)
        self.decode_seconds = histogram("tsm_decode_seconds", "Time to decode a video or window.")
        self.compute_seconds = histogram("tsm_compute_seconds", "Time to compute a batch.")
        self.batch_size = histogram("tsm_batch_size", "Clips in a batch.", _SIZES)
        self.frames = count("tsm_frames", "Frames that the network saw.")
        about = "Frames of streams that arrived faster than they were computed."
        self.dropped = count("tsm_dropped_frames", about)
        self.deaths = count("tsm_process_failures", "Processes that failed.", "process")

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Adds a gauge whose value is computed whenever it is read."""
        Gauge(name, about, registry=self._registry).set_function(value)

    def page(self) -> bytes:
        """Returns all metrics in Prometheus' text format, `METRICS_TYPE`."""
        return generate_latest(self._registry)


class Gate:
    """An ASGI application that wraps another one.

    Args:
        app: the wrapped application.
        token: bearer token that requests must send; None if they need none.
        public: paths that need no token.
        paths: of the application; all others are counted as `other`.
        origins: besides the service's own pages, pages from these may open WebSockets. They are
            checked here because browsers do not restrict WebSockets to the same origin, as they
            restrict reading HTTP answers.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        token: str | None,
        public: Collection[str],
        paths: Collection[str],
        origins: Collection[str] = (),
    ):
        self._app, self._metrics = app, metrics
        self._token = None if token is None else _digest(token.encode())
        self._public, self._paths, self._origins = public, paths, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope["tsm.id"] = uuid.uuid4().hex
        has_body = "transfer-encoding" in headers or "content-length" in headers
        scope["tsm.unread"] = has_body and scope["type"] == "http"
        start, status, received = time.perf_counter(), CLIENT_GONE, 0

        async def tracked_receive() -> Message:
            nonlocal received, status
            message = await receive()
            received += len(message.get("body") or message.get("bytes") or b"")
            if message["type"] == "websocket.disconnect" and status == CLIENT_GONE:
                status = min(message.get("code", CLIENT_GONE), _PRIVATE_CODES)
            if not message.get("more_body", False):
                scope["tsm.unread"] = False
            return message

        async def tracked_send(message: Message) -> None:
            nonlocal status
            kind = message["type"].removeprefix("websocket.")
            status = message.get("code" if kind == "close" else "status", status)
            if kind in ("http.response.start", "accept"):
                added = MutableHeaders(scope=message)
                added["x-request-id"] = scope["tsm.id"]
                added["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            if (refused := self._refused(scope)) is None:
                await self._app(scope, tracked_receive, tracked_send)
            else:
                await refuse(refused, scope, tracked_receive, tracked_send)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            seconds = time.perf_counter() - start
            if scope["path"] == "/v1/predict":
                self._metrics.request_seconds.observe(seconds)
            _log.info(_line(scope, status, seconds, received))

    def _refused(self, scope: Scope) -> Refused | None:
        if scope["path"] not in self._public and not self._authorized(scope):
            return Refused("unauthorized", "send the header Authorization: Bearer TOKEN")
        if scope["type"] == "websocket":
            if scope["path"] != STREAM_PATH:
                return Refused("not_found", f"only {STREAM_PATH} accepts WebSockets")
            if not self._from_allowed_page(scope):
                return Refused("forbidden", "pages from other origins need --cors_origin")
        return None

    def _from_allowed_page(self, scope: Scope) -> bool:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is None or origin in self._origins or "*" in self._origins:
            return True
        return origin.partition("://")[2] == headers.get("host")

    def _authorized(self, scope: Scope) -> bool:
        if self._token is None:
            return True
        kind, _, token = _authorization(scope).partition(" ")
        # Digests have equal length, so the time reveals nothing about the token's length.
        same = hmac.compare_digest(_digest(token.strip().encode("latin-1")), self._token)
        return kind.lower() == "bearer" and same


def _authorization(scope: Scope) -> str:
    for name in scope.get("subprotocols", ()):
        if name.startswith(_BEARER):
            encoded = name.removeprefix(_BEARER).encode("latin-1")
            with suppress(ValueError):
                token = base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4))
                return f"Bearer {token.decode('latin-1')}"
    return Headers(scope=scope).get("authorization", "")


async def refuse(
    refused: Refused,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answers with an error, whether or not the body was read."""
    body = to_json(refused.values(scope["tsm.id"]))
    fields = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "cache-control": "no-store",
        **(headers or {}),
    }
    if refused.status == 503:
        fields["retry-after"] = str(RETRY_AFTER)
    if refused.status == 401:
        fields["www-authenticate"] = "Bearer"
    if scope["tsm.unread"]:
        fields["connection"] = "close"
    raw = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
    answer = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    await send({"type": f"{answer}.start", "status": refused.status, "headers": raw})
    await send({"type": f"{answer}.body", "body": body, "more_body": True})
    await _linger(scope, receive)
    await send({"type": f"{answer}.body", "body": b""})


async def _linger(scope: Scope, receive: Receive) -> None:
    received = 0
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while scope["tsm.unread"] and received < _LINGER_BYTES:
                received += len((await receive()).get("body", b""))
    except TimeoutError:
        pass


def to_json(values: Mapping[str, Any]) -> bytes:
    """Returns UTF-8 JSON; lone surrogates, which UTF-8 cannot encode, are escaped."""
    return json.dumps(values, ensure_ascii=False, allow_nan=False).encode(
        "utf-8", "backslashreplace"
    )


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _line(scope: Scope, status: int, seconds: float, received: int) -> str:
    return json.dumps(
        {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": scope["tsm.id"],
            "client": (scope.get("client") or ["?"])[0],
            "method": scope.get("method", "WEBSOCKET"),
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            "bytes": received,
        }
    )
