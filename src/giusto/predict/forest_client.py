"""A forest of lengths in a process of its own, from the side of whoever schedules. Never blocks."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from giusto.core.events import Arrived, Estimated, Finished, Rejected
from giusto.core.request import FinishReason, RequestView
from giusto.predict.estimates import Refresh
from giusto.predict.features import features

log = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "giusto.predict.forest_worker")
#: One thread: the numeric libraries read these when they are loaded.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
#: Bytes that may wait to be sent while the worker fits; what comes on top is dropped.
MAX_UNSENT = 4 << 20
CLOSE_TIMEOUT = 5.0

#: Request id and whole lengths at `LEVELS`.
Answer = tuple[str, tuple[float, ...]]


class Lines:
    """JSON lines from a stream of bytes; both ends of the socket read it so."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            yield message


class ForestClient:
    """Starts the worker and talks to it. When it dies, that is logged and no answers come any more.

    `path` is where it keeps what it learned; None keeps nothing.
    """

    def __init__(self, path: Path | None = None, command: Sequence[str] = WORKER) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            self._process = subprocess.Popen(
                [*command, str(path or ""), str(fd)],
                pass_fds=[fd],
                start_new_session=True,
                env={**os.environ, **ENVIRONMENT},
            )
        self._connection.setblocking(False)
        self._unsent = bytearray()
        self._lines = Lines()
        self._is_alive = True
        self.num_dropped = 0

    @property
    def is_alive(self) -> bool:
        """Whether answers may still come."""
        return self._is_alive

    def fileno(self) -> int:
        """For `select`: readable when `poll` has something."""
        return self._connection.fileno()

    def ask(self, request_id: str, known: Sequence[float], emitted: int = 0) -> None:
        """Ask how long the output may become; `known` is of `features`. The newest ask counts."""
        self._send({"ask": request_id, "emitted": emitted, "known": known})

    def learn(self, known: Sequence[float], length: int) -> None:
        """Tell of a request that ended with so many tokens."""
        self._send({"learn": length, "known": known})

    def poll(self) -> list[Answer]:
        """The answers that have come since the last call."""
        if not self._is_alive:
            return []
        self._flush()
        answers = []
        for message in self._receive():
            if "id" in message:
                answers.append((message["id"], tuple(message["lengths"])))
            else:
                log.debug("lengths: fitted to %(fitted)d rows in %(seconds).2f s", message)
        return answers

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Let the worker save and end; kill it after `timeout` seconds."""
        if self._is_alive:
            self._is_alive = False
            try:
                self._connection.settimeout(timeout)
                self._connection.sendall(self._unsent)
                # Closed at once, the socket would fail under an answer before all was read.
                self._connection.shutdown(socket.SHUT_WR)
                while self._connection.recv(1 << 16):
                    pass
            except OSError:
                log.debug("the forest of lengths did not take its last messages")
        self._connection.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, message: dict[str, Any]) -> None:
        if not self._is_alive:
            return
        if len(self._unsent) > MAX_UNSENT:
            self.num_dropped += 1
            return
        self._unsent += json.dumps(message).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent)]
        except BlockingIOError:
            pass  # it is busy; the rest goes with the next call
        except OSError:
            self._lose()

    def _receive(self) -> Iterator[dict[str, Any]]:
        while self._is_alive:
            try:
                data = self._connection.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lose()
                return
            yield from self._lines.feed(data)

    def _lose(self) -> None:
        self._is_alive = False
        log.warning(
            "the forest of lengths has stopped (exit code %s); bounds go on without it",
            self._process.poll(),
        )


class Client(Protocol):
    """What a feed needs of a `ForestClient`, or of one without a process."""

    def ask(self, request_id: str, known: Sequence[float], emitted: int = 0) -> None: ...
    def learn(self, known: Sequence[float], length: int) -> None: ...
    def poll(self) -> list[Answer]: ...


class ForestFeed:
    """What a driver runs beside its scheduler: asks and teaches a forest from events.

    Subscribe `observe`, and pass what `poll` returns to `Scheduler.inform`. `prompt_ids` tells the
    prompt's tokens of a request that has just arrived; without text there are none.
    """

    def __init__(
        self,
        client: Client,
        prompt_ids: Callable[[RequestView], Sequence[int]] = lambda request: (),
    ) -> None:
        self._client = client
        self._prompt_ids = prompt_ids
        self._refresh = Refresh()
        self._open: dict[str, tuple[RequestView, tuple[float, ...]]] = {}

    def observe(self, event: object) -> None:
        self._refresh.observe(event)
        match event:
            case Arrived(request):
                known = features(request, self._prompt_ids(request))
                self._open[request.id] = (request, known)
            case Finished(request_id, _, reason):
                ended = self._open.pop(request_id, None)
                answered = reason in (FinishReason.STOP, FinishReason.LENGTH)
                if ended is not None and answered and ended[0].num_output_tokens:
                    self._client.learn(ended[1], ended[0].num_output_tokens)
            case Rejected(request_id):
                self._open.pop(request_id, None)

    def poll(self, now: float) -> list[Estimated]:
        """Ask about whom it is time to, and hand over the answers that have come."""
        for request in self._refresh.take():
            self._client.ask(request.id, self._open[request.id][1], request.num_output_tokens)
        return [Estimated(name, lengths, now) for name, lengths in self._client.poll()]
