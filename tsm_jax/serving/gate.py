"""What every request passes: an id, the token, headers of safety, the log and the counters."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tsm_jax.serving.limits import RETRY_AFTER, Refused
from tsm_jax.serving.metrics import Metrics

_log = logging.getLogger("tsm_jax.serving.access")

# Of a refused body, which is read for so long, because a client that still sends may not see an
# answer that comes with the end of its connection.
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 4 << 20

CLIENT_GONE = 499  # as nginx has it, in the log alone


class Gate:
    """An ASGI application around another one.

    Args:
        app: the other one.
        metrics: that it counts in.
        token: which requests have to bear; None for none.
        public: paths that need none.
        paths: of the application; the rest is counted as `other`.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        token: str | None,
        public: Collection[str],
        paths: Collection[str],
    ):
        self._app, self._metrics = app, metrics
        self._token = None if token is None else _digest(token.encode())
        self._public, self._paths = public, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope["tsm.id"] = uuid.uuid4().hex
        scope["tsm.unread"] = "transfer-encoding" in headers or "content-length" in headers
        start, status, received = time.perf_counter(), CLIENT_GONE, 0

        async def tracked_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if not message.get("more_body", False):
                scope["tsm.unread"] = False
            return message

        async def tracked_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["x-request-id"] = scope["tsm.id"]
                added["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            if scope["path"] in self._public or self._authorized(scope):
                await self._app(scope, tracked_receive, tracked_send)
            else:
                wrong = Refused("unauthorized", "send the header Authorization: Bearer TOKEN")
                await refuse(wrong, scope, tracked_receive, tracked_send)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.requests.labels(path, str(status)).inc()
            seconds = time.perf_counter() - start
            if scope["path"] == "/v1/predict":
                self._metrics.request_seconds.observe(seconds)
            _log.info(_line(scope, status, seconds, received))

    def _authorized(self, scope: Scope) -> bool:
        if self._token is None:
            return True
        kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        # Digests have one length, so that the time says nothing of the token's.
        same = hmac.compare_digest(_digest(token.strip().encode("latin-1")), self._token)
        return kind.lower() == "bearer" and same


async def refuse(
    refused: Refused,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Answers with an error, whether or not the body was read."""
    values = {"id": scope["tsm.id"], "code": refused.code, "error": refused.message}
    body = to_json(values)
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
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await _linger(scope, receive)
    await send({"type": "http.response.body", "body": b""})


async def _linger(scope: Scope, receive: Receive) -> None:
    received = 0
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while scope["tsm.unread"] and received < _LINGER_BYTES:
                received += len((await receive()).get("body", b""))
    except TimeoutError:
        pass


def to_json(values: Mapping[str, Any]) -> bytes:
    """UTF-8; what it cannot hold (half of a pair of surrogates) is escaped."""
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
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
            "bytes": received,
        }
    )
