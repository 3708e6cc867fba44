"""The ASGI application and the process around it: `create_app` and `serve`.

`create_app` neither starts nor stops the backend; `serve` does, and drains it on SIGTERM: the
port stays open, `/health` turns 503, new requests are refused, and the process ends when the open
ones have, or after the drain timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from giusto import __version__
from giusto.config import ServerSettings
from giusto.core.errors import InvalidRequest
from giusto.metrics.prometheus import PrometheusMetrics
from giusto.server.backend import Backend, BackendDied, Refused
from giusto.server.document import body, describe, path_parameter, responses
from giusto.server.edge import Edge
from giusto.server.errors import ApiError, api_error
from giusto.server.openai import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from giusto.server.routes import Metrics, Routes

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

#: Seconds that answers which have ended may take to reach slow clients when the server stops.
FLUSH_S = 5


def create_app(
    backend: Backend, settings: ServerSettings, metrics: Metrics | None = None
) -> FastAPI:
    """Make the application over a backend that somebody else has started and will stop.

    `app.state.routes` is the `Routes` behind it.
    """
    if metrics is None:
        metrics = PrometheusMetrics(
            (settings.served_model_names or (backend.model.name,))[0],
            vllm_aliases=settings.vllm_metrics,
            load=backend.load,
        )
    routes = Routes(backend, settings, metrics)
    app = FastAPI(
        title="Giusto",
        version=__version__,
        # The documentation pages would load scripts from elsewhere; /openapi.json stands alone.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.routes = routes
    _add_routes(app, routes)
    for kind in (ApiError, InvalidRequest, Refused, BackendDied, Exception):
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.allowed_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(Edge, now=backend.now, settings=settings)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app


def serve(
    backend: Backend,
    settings: ServerSettings,
    metrics: Metrics | None = None,
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal stops at once.

    Blocks. `on_ready` is called with the port once connections are accepted. Raises what the
    backend raises when it cannot start.
    """
    try:
        asyncio.run(_serve(backend, settings, metrics, on_ready))
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None


async def _serve(
    backend: Backend,
    settings: ServerSettings,
    metrics: Metrics | None,
    on_ready: Callable[[int], None] | None,
) -> None:
    try:
        with _cancelled_by_sigterm():
            await backend.start()
        server = make_server(create_app(backend, settings, metrics), settings)
        server.on_ready = on_ready
        await server.serve()
    finally:
        await backend.stop()


@contextlib.contextmanager
def _cancelled_by_sigterm() -> Iterator[None]:
    """Let SIGTERM cancel the present task: a backend that is still starting must be stopped too."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def make_server(app: FastAPI, settings: ServerSettings) -> DrainingServer:
    """Make the HTTP server of an application from `create_app`."""
    routes: Routes = app.state.routes

    async def drain() -> None:
        routes.is_draining = True
        await routes.backend.drain(settings.drain_timeout_s)
        # Whatever is still open ends now, with an error that says so.
        await routes.backend.stop()

    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        root_path=settings.root_path,
        http=_capped_protocol(settings.max_header_bytes),
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        log_level=settings.log_level,
        timeout_graceful_shutdown=FLUSH_S,
    )
    return DrainingServer(config, drain)


class DrainingServer(uvicorn.Server):
    """Uvicorn, but the first signal drains before it stops accepting connections."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.on_ready: Callable[[int], None] | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started and self.on_ready is not None:
            self.on_ready(self.servers[0].sockets[0].getsockname()[1])

    async def serve(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)  # type: ignore[arg-type]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal; end at once on the next."""
        if self._loop is None or self._draining is not None or not self.started:
            self.should_exit = True
            self.force_exit = self._draining is not None
            return
        self._loop.call_soon_threadsafe(self.start_drain, signal.Signals(sig).name)

    def start_drain(self, why: str) -> None:
        """Begin to drain, on the server's loop; the server ends when that is done."""
        if self._draining is None:
            logger.info("%s: draining", why)
            self._draining = asyncio.get_running_loop().create_task(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        try:
            await self._drain()
        finally:
            self.should_exit = True


def _capped_protocol(max_header_bytes: int) -> type[HttpToolsProtocol]:
    """Uvicorn's fast parser with a bound on the head of a request, which it does not have."""

    class CappedProtocol(HttpToolsProtocol):
        # Twice the cap, so that what is a little too large still gets an answer by `Edge`.
        head_left = 2 * max_header_bytes
        in_head = True

        def on_message_begin(self) -> None:
            self.head_left = 2 * max_header_bytes
            self.in_head = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self.in_head = False
            super().on_headers_complete()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.in_head:
                self.head_left -= len(data)
                if self.head_left < 0:
                    self.transport.close()

    return CappedProtocol


def _add_routes(app: FastAPI, routes: Routes) -> None:
    generating = (400, 401, 403, 404, 405, 413, 415, 429, 431, 500, 503)
    reading = (400, 401, 404, 405, 413, 415, 431)
    posts: dict[str, tuple[Handler, type[BaseModel], str, tuple[int, ...]]] = {
        "/v1/chat/completions": (routes.chat, ChatRequest, "Completion", generating),
        "/v1/completions": (routes.completions, CompletionRequest, "Completion", generating),
        "/tokenize": (routes.tokenize, TokenizeRequest, "object", reading),
        "/detokenize": (routes.detokenize, DetokenizeRequest, "object", reading),
    }
    for path, (handler, model, ok, statuses) in posts.items():
        app.add_api_route(
            path,
            handler,
            methods=["POST"],
            response_model=None,
            responses=responses(ok, *statuses),
            openapi_extra=body(model),
        )
    gets: dict[str, tuple[Handler, str | None]] = {
        "/v1/models": (routes.list_models, "object"),
        "/v1/models/{model_id:path}": (routes.get_model, "object"),
        "/health": (routes.health, "Status"),
        "/live": (routes.live, "Status"),
        "/version": (routes.version, "object"),
        "/metrics": (routes.metrics_page, None),
        "/load": (routes.load, "object"),
        "/debug/requests/{request_id:path}": (routes.explain, "object"),
    }
    for path, (get, ok_schema) in gets.items():
        app.add_api_route(
            path,
            get,
            methods=["GET"],
            response_model=None,
            responses=responses(ok_schema, 400, 401, 403, 404, 405, 431, 503),
            openapi_extra=_named(path),
        )
    app.add_api_route(
        "/v1/programs/{program_id:path}/close",
        routes.close_program,
        methods=["POST"],
        response_model=None,
        responses=responses("object", 400, 401, 404, 405, 413, 431),
        openapi_extra=path_parameter("program_id"),
    )


def _named(path: str) -> dict[str, Any] | None:
    """Describe the one name that a path may hold."""
    _, brace, rest = path.partition("{")
    return path_parameter(rest.partition(":")[0]) if brace else None


async def _on_error(request: Request, error: Exception) -> Response:
    return api_error(error).response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Answer for routes and methods that are not there, naming what is."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path[:128]}"
    if error.status_code == 404:
        paths = sorted({route.path for route in request.app.routes if hasattr(route, "path")})
        message = f"no route {what}; there are {', '.join(paths)}"
        return ApiError(404, message, None, "unknown_route").response()
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{what} is not allowed; allowed: {allowed}"
        return ApiError(405, message, None, "method_not_allowed", error.headers).response()
    return ApiError(error.status_code, str(error.detail), headers=error.headers).response()
