"""Servers with a real engine: `giusto serve` as users start it; one whose engine is in reach."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator

import httpx
from fastapi import FastAPI

from engines import assert_empty
from giusto import build
from giusto.config import ServerSettings
from giusto.core.clock import WallClock
from giusto.engine.backend import EmbeddedBackend
from giusto.engine.engine import Engine
from giusto.engine.launch import ThreadLauncher
from giusto.engine.loop import Loop
from giusto.engine.settings import EngineSettings
from giusto.server.app import create_app
from live import PATIENCE_S, Live

START_S = 60
URL = re.compile(r" on (http://\S+) ")


class Served:
    """A server process; `url` is what it announced."""

    def __init__(self, *words: str, **env: str) -> None:
        command = [sys.executable, "-m", "giusto.cli", "serve", "--port", "0", *words]
        clean = {k: v for k, v in os.environ.items() if k != "GIUSTO_API_KEY"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean | env
        )
        self.log: list[str] = []
        self.announced: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self._threads = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_log, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read_output(self) -> None:
        for line in self.process.stdout:
            self.announced.append(line)
            if found := URL.search(line):
                self.url = found[1]
            if line.startswith("Metrics:"):
                self._ready.set()
        self._ready.set()

    def _read_log(self) -> None:
        self.log += self.process.stderr

    def wait_ready(self) -> None:
        """Wait until it has announced itself, at most as long as users are promised."""
        is_told = self._ready.wait(START_S)
        if not (is_told and self.url):
            self.stop()
        assert is_told and self.url, "".join([*self.announced, *self.log])

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float = 30) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for thread in self._threads:
                thread.join(10)
            self.process.stdout.close()
            self.process.stderr.close()

    def stop(self) -> int:
        self.terminate()
        return self.wait()

    def get(self, path: str, **options: object) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, **options)

    def post(self, path: str, **options: object) -> httpx.Response:
        return httpx.post(self.url + path, timeout=60, **options)


@contextlib.contextmanager
def served(*words: str, **env: str) -> Iterator[Served]:
    """Start a server and stop it at the end; an exit code other than 0 is an error."""
    server = Served(*words, **env)
    server.wait_ready()
    try:
        yield server
    finally:
        code = server.stop() if server.process.poll() is None else server.wait()
        assert code == 0, "".join(server.log)


class Watched(Live):
    """A server and its engine as two threads of this process, so that `engine` can be looked at.

    `post` and `get` are those of a client with the API key `key`.
    """

    def __init__(self, engine: EngineSettings, server: ServerSettings, key: str) -> None:
        super().__init__(self._live, server)
        self._engine_settings = engine
        self._clock = WallClock()
        self.backend = EmbeddedBackend(ThreadLauncher(self._drive), self._clock)
        self.engine: Engine | None = None
        self.app: FastAPI | None = None
        # Each request has a connection of its own, accepted after all that came before.
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=PATIENCE_S,
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        self.post, self.get = self._client.post, self._client.get

    @contextlib.asynccontextmanager
    async def _live(self) -> AsyncIterator[FastAPI]:
        await self.backend.start()
        try:
            self.app = create_app(self.backend, self._settings)
            yield self.app
        finally:
            await self.backend.stop()

    def _drive(self, connection: socket.socket) -> None:
        with connection:
            self.engine, ready = build.engine(self._engine_settings, self._clock)
            Loop(self.engine, connection).run(ready)

    def stop(self) -> None:
        self._client.close()
        super().stop()

    def assert_nothing_leaked(self) -> None:
        """The server still answers, and of what it was asked before nothing is left anywhere.

        By the time the first request is answered, all that earlier clients sent is read, and what
        they abandoned is then waited for. The second comes to the engine after the aborts; once
        it is answered the engine's thread waits for messages, and its state can be looked at.
        """
        for _ in range(2):
            answer = self.post("/v1/completions", json={"prompt": "hi", "max_tokens": 2})
            assert answer.status_code == 200, answer.text
            self.settle()
        assert_empty(self.engine)
        assert not self.backend._open
        assert not self.backend._samples
        assert not self.app.state.routes.promises._open
