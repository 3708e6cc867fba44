"""`giusto serve` as a process of its own, as a user starts it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx

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

    def is_free(self) -> bool:
        """Whether nothing runs or waits and all KV memory is free."""
        load = self.get("/load").json()
        return (
            load["running"] == load["waiting"] == 0 and load["free_blocks"] == load["total_blocks"]
        )

    def until_free(self) -> None:
        """Ask until everything is free: an abort takes a step or two to be carried out."""
        assert any(self.is_free() for _ in range(2000)), self.get("/load").text


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
