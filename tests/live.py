"""Ways to reach an application in tests: in process, and over real HTTP on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI

from giusto.config import ServerSettings
from giusto.server.app import DrainingServer, make_server

#: Seconds after which a wait has failed, however busy the machine.
PATIENCE_S = 60


class InProcess:
    """A client that calls the application directly; answers arrive whole."""

    def __init__(self, app: FastAPI, **headers: str) -> None:
        self.app = app
        self.headers = headers

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://test", headers=self.headers
            ) as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())


class Live:
    """A server in a thread. `drain` does what SIGTERM does.

    `life` makes the application on the server's own loop, and ends what it made.
    """

    def __init__(
        self, life: Callable[[], AbstractAsyncContextManager[FastAPI]], settings: ServerSettings
    ) -> None:
        self._life = life
        self._settings = settings
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server: DrainingServer | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()

    def _run(self) -> None:
        async def run() -> None:
            async with self._life() as app:
                self._loop = asyncio.get_running_loop()
                self.server = make_server(app, self._settings)
                self._started.set()
                await self.server.serve([self._socket])

        try:
            asyncio.run(run())
        finally:
            self._started.set()

    def start(self) -> None:
        self.thread.start()
        assert self._started.wait(PATIENCE_S)
        assert self.server is not None, "it could not start"

    def drain(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.server.start_drain, "test")

    def wait_for(self, work: Coroutine[Any, Any, None]) -> None:
        """Await something on the server's loop: a client has its answer before the request ends."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def settle(self) -> None:
        """Wait until every request that the server has read has ended, answered or given up."""

        async def work() -> None:
            while tasks := set(self.server.server_state.tasks):
                await asyncio.wait(tasks)

        self.wait_for(work())

    def stop(self) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()


L = TypeVar("L", bound=Live)


@contextlib.contextmanager
def live(app: FastAPI, settings: ServerSettings | None = None) -> Iterator[Live]:
    """Serve an application on a free port of loopback."""
    with running(Live(lambda: contextlib.nullcontext(app), settings or ServerSettings())) as server:
        yield server


@contextlib.contextmanager
def running(server: L) -> Iterator[L]:
    """Start a server and stop it at the end."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


def error(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error in a response, after a look at its shape: OpenAI's, whatever the status."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    found: dict[str, Any] = response.json()["error"]
    assert list(found) == ["message", "type", "param", "code"]
    assert found["message"]
    assert response.headers["x-request-id"]
    return found
