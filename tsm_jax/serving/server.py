"""Listens for connections, within limits, and shuts down without losing requests."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from tsm_jax.errors import UserError
from tsm_jax.files import reason
from tsm_jax.serving import sandbox
from tsm_jax.serving.app import Service, Settings
from tsm_jax.serving.gate import to_json
from tsm_jax.serving.limits import RETRY_AFTER, Limits, Refused

_HEADER_BYTES = 32 << 10
_LAST_CALL_SECONDS = 0.5  # for the headers of clients that connected before the shutdown
_GOODBYE_SECONDS = 5  # for a client to close its side of a WebSocket
_CHECKS = 4  # of a connection per `idle_seconds`


def serve(settings: Settings, host: str, port: int) -> None:
    """Answers requests until SIGTERM or SIGINT, then finishes those already accepted.

    Raises:
        UserError: the model cannot be opened, or the address cannot be used.
        RuntimeError: the network could not be loaded for another reason.
    """
    try:
        listener = _listen(host, port)
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {reason(error)}") from error
    signals: list[int] = []
    with listener:
        try:
            service = Service(settings, lambda: setattr(server, "should_exit", True))
        except OSError as error:
            message = f"cannot create temporary files: {reason(error)} (set TMPDIR)"
            raise UserError(message) from error
        try:
            server = uvicorn.Server(_config(service, settings.limits))

            def stop(number: int, _: Any) -> None:
                signals.append(number)
                server.should_exit = True

            # Until uvicorn installs its own handlers, which raise these signals again at its end.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, stop)
            _log_to_stdout()
            _announce(settings, listener)
            server.run([listener])
        finally:
            service.close()
    if service.failure is not None and not signals:  # stopping while loading is no failure
        raise service.failure
    print("stopped", file=sys.stderr)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


def _config(service: Service, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        service.app,
        http=type("Limited", (_Connection,), {"limits": limits, "service": service}),
        ws=type("Closed", (_Socket,), {"service": service}),
        ws_max_size=limits.frame_bytes,
        ws_per_message_deflate=False,  # small messages could expand to large ones
        ws_ping_interval=None,  # idle streams are closed anyway
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_graceful_shutdown=round(limits.drain_seconds),
    )


def _log_to_stdout() -> None:
    log = logging.getLogger("tsm_jax.serving.access")
    log.addHandler(logging.StreamHandler(sys.stdout))
    log.setLevel(logging.INFO)
    log.propagate = False
    # Errors of clients are in the access log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def _announce(settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    local = host in ("127.0.0.1", "::1")
    lines = [f"{settings.model} on http://{f'[{host}]' if ':' in host else host}:{port}/"]
    if local:
        lines[0] += "  (only from this machine; --host 0.0.0.0 for others)"
    elif settings.token is None:
        lines.append("warning: anyone who can reach this machine can use it: set --token_file FILE")
    if not sandbox.has_filters():
        lines.append("warning: on this system, decoding processes keep network access")
    print("\n".join(lines), file=sys.stderr, flush=True)


class _Connection(H11Protocol):
    """A connection that is closed if its client does not send, or does not read, for too long.

    uvicorn waits forever for the headers of a first request, for the remaining headers of a later
    one, and for a client that does not read.
    """

    limits: Limits
    service: Service

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._unsent = 0
        self._waits_since: float | None = self.loop.time()
        self._next_check: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.connections:
            self._answer("busy", "too many connections are open: try again")
        else:
            self._check()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next_check is not None:
            self._next_check.cancel()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        if self._next_check is not None:
            self._next_check.cancel()  # from now on, streams.py limits its idle time
        super().handle_websocket_upgrade(event)

    def shutdown(self) -> None:
        """Lets connected clients still send a request, if they do so at once."""
        self.service.stop_streams()
        if self.cycle is None and not self.transport.is_closing():
            self.loop.call_later(_LAST_CALL_SECONDS, self._end)
        else:
            super().shutdown()

    def _end(self) -> None:
        if self in self.connections:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._answer("bad_request", "cannot parse the request as HTTP")
        else:
            self.transport.abort()

    def _answer(self, code: str, message: str) -> None:
        """Answers with an error before there is a request."""
        refused = Refused(code, message)
        body = to_json(refused.values(""))
        retry = f"retry-after: {RETRY_AFTER}\r\n" if refused.status == 503 else ""
        head = (
            f"HTTP/1.1 {refused.status} {code}\r\ncontent-type: application/json\r\n{retry}"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _check(self) -> None:
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        stuck = unsent > 0 and unsent == self._unsent
        self._unsent = unsent
        if self.cycle is not None and not self.cycle.response_complete:
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = now
        idle = self._waits_since is not None and now - self._waits_since > self.limits.idle_seconds
        if stuck or idle:
            self.transport.abort()
        else:
            pause = self.limits.idle_seconds / _CHECKS
            self._next_check = self.loop.call_later(pause, self._check)


class _Socket(WebSocketsSansIOProtocol):
    """A WebSocket that lets its stream end on shutdown, and is closed soon after the stream.

    uvicorn alone would close it before the last answer, and wait forever for a client that does not
    read.
    """

    service: Service

    def shutdown(self) -> None:
        if self.handshake_complete:
            self.service.stop_streams()
        else:
            super().shutdown()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self.loop.call_later(_GOODBYE_SECONDS, self.transport.abort)
