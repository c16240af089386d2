"""The routes, and the path of a video through the service."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

import tsm_jax
from tsm_jax.deploy.artifact import STREAM, read_artifact
from tsm_jax.deploy.prediction import Moment, as_values, average_views, best_classes, softmax
from tsm_jax.deploy.videos import Window
from tsm_jax.errors import UserError
from tsm_jax.serving import openapi
from tsm_jax.serving.decoding import Decoders, Task
from tsm_jax.serving.engine import Batcher, EngineProcess, Running
from tsm_jax.serving.gate import METRICS_TYPE, STREAM_PATH, Gate, Metrics, refuse, to_json
from tsm_jax.serving.limits import Limits, Refused
from tsm_jax.serving.openapi import Options, read_options, schemas
from tsm_jax.serving.streams import Streams, refuse_stream
from tsm_jax.serving.uploads import Uploads

_logger = logging.getLogger(__name__)

# Seconds between checks whether the engine has to be restarted.
_RETRY_SECONDS = 1.0

_PUBLIC = ("/", "/healthz", "/readyz", "/openapi.json")


@dataclass(frozen=True)
class Settings:
    """Settings of the service; `engine`, `precision` and `protocol` are as for `tsm_jax.load`."""

    model: str  # an exported folder, for clips or for streams
    engine: str = "auto"
    precision: str = "float32"
    protocol: str | None = None
    max_batch: int | None = None  # clips per batch; None for the engine's preference
    max_wait: float = 0.002  # seconds that a batch waits for clips still being decoded
    token: str | None = None  # bearer token that requests must send
    cors_origins: tuple[str, ...] = ()  # origins whose pages may use the service
    limits: Limits = field(default_factory=Limits)


class Service:
    """A model served over HTTP.

    Args:
        settings: of the service.
        stop: called if the network cannot be loaded, after the error is stored in `failure`.

    Attributes:
        app: the ASGI application.
        failure: why the network could not be loaded, or None.
        streams: None if the model is for clips.

    Raises:
        UserError: the folder is not an exported one, or the settings do not fit it.
        OSError: temporary files cannot be created.
    """

    def __init__(self, settings: Settings, stop: Callable[[], None]):
        self._settings, self._stop = settings, stop
        self.failure: UserError | RuntimeError | None = None
        artifact = self._artifact = read_artifact(settings.model, None)
        if artifact.kind == STREAM:
            _check_stream_settings(settings)
        protocol = artifact.protocol(settings.protocol).name
        self._schemas = schemas(len(artifact.labels), artifact.fitting_protocols(), protocol)
        self._page, self._page_policy = _read_page()
        self._metrics = Metrics()
        self._requests = self._decoding = 0
        limits = settings.limits
        self._uploads = Uploads(limits)
        self._decoders = Decoders(artifact.preprocessing, artifact.num_segments, limits)
        self._engine = EngineProcess(
            settings.model,
            settings.engine,
            settings.precision,
            settings.max_batch,
            orphaned=partial(shutil.rmtree, self._uploads.folder, ignore_errors=True),
            failed=self._metrics.deaths.labels("engine").inc,
        )
        self.streams: Streams | None = None
        if artifact.kind == STREAM:
            self.streams = Streams(artifact, limits, self._decoders, self._engine, self._metrics)
        self._watch()
        self.app = self._application()

    def stop_streams(self) -> None:
        """Ends all streams, if the model is for streams, and refuses new ones."""
        if self.streams is not None:
            self.streams.stop()

    def close(self) -> None:
        """Ends all processes and deletes all temporary files."""
        self._decoders.close()
        self._engine.close()
        self._uploads.close()

    # Request handlers

    async def _predict(self, request: Request) -> Response:
        if self.streams is not None:
            raise Refused("wrong_kind", f"this model is for streams: connect to {STREAM_PATH}")
        options = read_options(request.query_params.multi_items(), self._schemas)
        self._check_free()  # before reading a body in vain
        answer = self._whole if options.window is None else self._timeline
        async with self._uploads.receive(request) as upload:
            task = Task(upload.path, upload.name, options.protocol, options.window, options.step)
            with self._admitted():
                values = {"id": request.scope["tsm.id"], "video": upload.name}
                return _json({**values, **await answer(request, task, options)})

    async def _whole(self, request: Request, task: Task, options: Options) -> dict[str, Any]:
        async with self._memory:
            await _check_connected(request)
            self._decoding += 1
            try:
                start = time.perf_counter()
                async with self._decoders.decoding(task) as found:
                    (window,) = [each async for each in found]
                self._metrics.decode_seconds.observe(time.perf_counter() - start)
            finally:
                self._decoding -= 1
            moment = await self._moment(window, options)
        return {"predictions": as_values(moment.predictions)}

    async def _timeline(self, request: Request, task: Task, options: Options) -> dict[str, Any]:
        moments = []
        async with self._decoders.decoding(task) as found:
            await _check_connected(request)
            start = time.perf_counter()
            async for window in found:
                self._metrics.decode_seconds.observe(time.perf_counter() - start)
                moments.append((await self._moment(window, options)).values())
                start = time.perf_counter()
        return {"timeline": moments}

    async def _moment(self, window: Window, options: Options) -> Moment:
        logits = await asyncio.gather(*(self._batcher(clip) for clip in window.views))
        protocol = self._artifact.protocol(options.protocol)
        average = average_views(np.stack(logits), protocol.average_probabilities)
        labels = self._artifact.labels
        best = best_classes(average, labels, options.top_k, self._settings.model)
        return Moment(window.start, window.end, best, softmax(average))

    async def _compute(self, batch: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        logits = await self._engine.logits(batch)
        self._metrics.compute_seconds.observe(time.perf_counter() - start)
        self._metrics.batch_size.observe(len(batch))
        self._metrics.frames.inc(len(batch) * self._artifact.num_segments)
        return logits

    async def _follow(self, websocket: WebSocket) -> None:
        if self.streams is None:
            await refuse_stream(websocket, self._no_streams())
        else:
            await self.streams.follow(websocket)

    async def _no_upgrade(self, _: Request) -> Response:
        if self.streams is None:
            raise self._no_streams()
        raise Refused("upgrade_required", "connect with a WebSocket (see docs/serving.md)")

    def _no_streams(self) -> Refused:
        return Refused("wrong_kind", "this model is for clips: POST a video to /v1/predict")

    def _check_free(self) -> None:
        if self._engine.running is None:
            raise Refused("not_ready", "the network is being loaded: try again")
        if self._requests >= self._settings.limits.requests:
            raise Refused("busy", f"{self._requests} requests are waiting: try again")

    @contextmanager
    def _admitted(self) -> Generator[None, None, None]:
        self._check_free()
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def _model(self, _: Request) -> Response:
        artifact, engine = self._artifact, self._engine.running
        protocol = self._schemas["protocol"]
        return _json(
            {
                "name": os.path.basename(os.path.abspath(self._settings.model)),
                "engine": engine.name if engine else None,
                "precision": engine.precision if engine else None,
                "device": engine.device if engine else None,
                "kind": artifact.kind,
                "frame_rate": float(artifact.preprocessing.frame_rate),
                "architecture": asdict(artifact.architecture),
                "protocol": protocol["default"],
                "protocols": protocol["enum"],
                "labels": list(artifact.labels),
                "limits": asdict(self._settings.limits),
            }
        )

    async def _alive(self, _: Request) -> Response:
        return _json({"status": "alive"})

    async def _ready(self, _: Request) -> Response:
        if not self._engine.ready:
            raise Refused("not_ready", "the network is being loaded")
        return _json({"status": "ready"})

    async def _show_metrics(self, _: Request) -> Response:
        return Response(self._metrics.page(), headers={"content-type": METRICS_TYPE})

    async def _show_page(self, _: Request) -> Response:
        headers = {"content-security-policy": self._page_policy, "referrer-policy": "no-referrer"}
        return Response(self._page, media_type="text/html", headers=headers)

    async def _show_openapi(self, _: Request) -> Response:
        return _json(
            openapi.describe(
                tsm_jax.__version__,
                self._schemas,
                token=self._settings.token is not None,
                num_classes=len(self._artifact.labels),
                follows=self.streams is not None,
            )
        )

    # The application

    def _application(self) -> ASGIApp:
        routes = [
            Route("/", self._show_page),
            Route("/healthz", self._alive),
            Route("/readyz", self._ready),
            Route("/metrics", self._show_metrics),
            Route("/openapi.json", self._show_openapi),
            Route("/v1/model", self._model),
            Route("/v1/predict", self._predict, methods=["POST"]),
            Route(STREAM_PATH, self._no_upgrade),
            WebSocketRoute(STREAM_PATH, self._follow),
        ]
        app: ASGIApp = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={
                Refused: _on_refused,
                HTTPException: _on_http_error,
                ClientDisconnect: _on_disconnect,
                UserError: _on_user_error,
                Exception: _on_defect,
            },
        )
        paths, origins = [route.path for route in routes], self._settings.cors_origins
        app = Gate(app, self._metrics, self._settings.token, _PUBLIC, paths, origins)
        if origins:
            app = CORSMiddleware(
                app,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type"],
                expose_headers=["x-request-id", "retry-after"],
            )
        return app

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncGenerator[None, None]:
        keeping = asyncio.create_task(self._keep_engine())
        yield
        keeping.cancel()

    async def _keep_engine(self) -> None:
        """Loads the network, starts computing, and reloads the network whenever it is lost."""
        computing = None
        while True:
            if not self._engine.ready:
                try:
                    if computing is None:
                        await self._decoders.start()
                    running = await self._engine.start()
                    computing = computing or self._start_computing(running)
                except (UserError, RuntimeError) as error:
                    if computing is None:
                        self.failure = error
                        self._stop()
                        return
                    _logger.error("cannot start the engine: %s", error)
            await asyncio.sleep(_RETRY_SECONDS)

    def _start_computing(self, running: Running) -> asyncio.Task[None]:
        # Videos being decoded or waiting for the network: enough to keep both busy.
        self._memory = asyncio.Semaphore(self._settings.limits.decoders + 2 * running.max_batch)
        self._batcher = Batcher(
            self._compute, running.max_batch, self._settings.max_wait, lambda: self._decoding > 0
        )
        return asyncio.create_task(self._batcher.work())

    def _watch(self) -> None:
        watch = self._metrics.watch
        watch("tsm_ready", "Whether the network is loaded.", lambda: self._engine.ready)
        watch("tsm_queue", "Uploaded videos waiting for an answer.", lambda: self._requests)
        watch("tsm_decoding", "Videos being decoded.", lambda: self._decoding)
        watch("tsm_streams", "Open streams.", lambda: len(self.streams or ()))
        watch("tsm_stored_bytes", "Bytes of uploads on disk.", lambda: self._uploads.stored)
        watch("tsm_decoders", "Decoding processes.", lambda: len(self._decoders.pids))


def _check_stream_settings(settings: Settings) -> None:
    wrong = {
        "--precision": settings.precision != "float32",
        "--protocol": settings.protocol is not None,
        "--max_batch": settings.max_batch is not None,
    }
    for name, given in wrong.items():
        if given:
            raise UserError(
                f"{settings.model} was exported for streams, which are computed frame by frame in"
                f" float32: remove {name}"
            )


async def _check_connected(request: Request) -> None:
    if await request.is_disconnected():
        raise ClientDisconnect


def _json(values: dict[str, Any]) -> Response:
    headers = {"cache-control": "no-store"}
    return Response(to_json(values), media_type="application/json", headers=headers)


def _read_page() -> tuple[str, str]:
    """Returns the page, and a content security policy that allows only its own script and style."""
    page = (files("tsm_jax.serving") / "page.html").read_text(encoding="utf-8")

    def source(tag: str) -> str:
        match = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert match is not None
        digest = hashlib.sha256(match[1].encode()).digest()
        return f"{tag}-src 'sha256-{base64.b64encode(digest).decode()}'"

    policy = [
        "default-src 'none'",
        source("script"),
        source("style"),
        "connect-src 'self'",
        "media-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return page, "; ".join(policy)


# Exception handlers; each returns an ASGI application, which Starlette calls.


def _refusal(refused: Refused, headers: Mapping[str, str] | None = None) -> Any:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(refused, scope, receive, send, headers)

    return answer


async def _on_refused(_: Request, error: Exception) -> Any:
    assert isinstance(error, Refused)
    return _refusal(error)


async def _on_http_error(request: Request, error: Exception) -> Any:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refused = Refused("method_not_allowed", f"this address does not accept {request.method}")
    else:
        refused = Refused("not_found", "there is nothing at this address: see /openapi.json")
    return _refusal(refused, error.headers)


async def _on_disconnect(_: Request, __: Exception) -> Any:
    """Answers nothing: the client is gone."""


async def _on_user_error(request: Request, error: Exception) -> Any:
    _logger.error("request %s: %s", request.scope["tsm.id"], error)
    return _refusal(Refused("internal", "the model failed on this request: see the service's log"))


async def _on_defect(request: Request, error: Exception) -> Any:
    _logger.error("request %s", request.scope["tsm.id"], exc_info=error)
    return _refusal(Refused("internal", "internal error: see the service's log"))
