"""The engine's loop: one thread, one socket, messages in between steps.

It runs in a process of its own when serving, so that HTTP work cannot hold the interpreter lock
between two operators of a step, or in a thread in tests. Reading is polled between steps and
writing never blocks: a slow reader costs memory, bounded by its open requests, not step time.
"""

from __future__ import annotations

import logging
import selectors
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any

from giusto.core.events import Event, Finished
from giusto.core.request import FinishReason
from giusto.engine.engine import Engine
from giusto.engine.wire import FrameReader, decode_ask, encode_events, pack_frame

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
#: How many of the waiting requests a load report looks at, so that it stays cheap.
_BACKLOG_SAMPLE = 2000


class Loop:
    """Drives an engine from a connected socket until the other side closes it."""

    def __init__(self, engine: Engine, connection: socket.socket) -> None:
        self._engine = engine
        self._socket = connection
        self._socket.setblocking(False)
        self._reader = FrameReader()
        self._outgoing = bytearray()
        self._is_open = True
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)
        self._commands: dict[str, Callable[[dict[str, Any]], None]] = {
            "submit": lambda message: self._submit(message["ask"]),
            "abort": lambda message: engine.abort(message["id"]),
            "close_program": lambda message: engine.scheduler.close_program(
                message["id"], engine.clock.now()
            ),
            "drain": lambda message: self._drain(),
            "explain": lambda message: self._explain(message["ask"], message["id"]),
        }

    def run(self, ready: dict[str, Any]) -> None:
        """Announce readiness, then serve until the connection ends."""
        self._send({"ready": ready})
        wake_at: float | None = None
        while self._is_open:
            self._poll(self._patience(wake_at))
            wake_at = None
            if self._engine.scheduler.has_work:
                events, wake_at = self._engine.step()
            else:
                events = self._engine.take_events()
            if events:
                self._report(events)

    def _patience(self, wake_at: float | None) -> float | None:
        """Seconds to wait for a message: none while there is work, for ever when idle."""
        if wake_at is not None:
            return max(0.0, wake_at - self._engine.clock.now())
        return 0.0 if self._engine.scheduler.has_work else None

    def _poll(self, timeout: float | None) -> None:
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)
        self._selector.modify(self._socket, interest)
        for _, ready in self._selector.select(timeout):
            if ready & selectors.EVENT_READ:
                self._receive()
        self._flush()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._is_open = False
            return
        for message in self._reader.feed(data):
            self._obey(message)

    def _obey(self, message: dict[str, Any]) -> None:
        """Carry out a command; a bad one is logged and costs nobody else anything."""
        try:
            self._commands[message["op"]](message)
        except Exception:
            log.exception("a message could not be obeyed")

    def _submit(self, data: dict[str, Any]) -> None:
        try:
            self._engine.submit(decode_ask(data))
        except Exception:
            self._turn_away(data)
            raise

    def _turn_away(self, data: dict[str, Any]) -> None:
        """Answer a submission that failed on its way in: its client waits for every sample."""
        if data["id"] in self._engine.scheduler.requests:
            return
        now = self._engine.clock.now()
        names = [data["id"], *(f"{data['id']}#{k}" for k in range(1, data["n"]))]
        message = "the request could not be queued"
        self._report([Finished(name, now, FinishReason.ERROR, message) for name in names])

    def _drain(self) -> None:
        self._engine.scheduler.is_draining = True

    def _explain(self, ask: int, request_id: str) -> None:
        """Answer in any case: somebody waits."""
        facts = None
        try:
            facts = self._engine.explain(request_id)
        finally:
            self._send({"explained": ask, "facts": facts})

    def _report(self, events: list[Event]) -> None:
        self._send(
            {
                "events": encode_events(events),
                "load": self._load(),
                "degraded": self._engine.speculation_error,
            }
        )

    def _load(self) -> dict[str, Any]:
        scheduler = self._engine.scheduler
        return {
            "running": scheduler.num_running,
            "waiting": scheduler.num_waiting,
            "queued_prefill_tokens": scheduler.num_queued_tokens,
            "free_blocks": scheduler.pool.num_free,
            "total_blocks": scheduler.pool.num_blocks,
            "step_time": self._engine.step_time,
            "backlog_by_class": Counter(
                r.service_class for r in scheduler.waiting[:_BACKLOG_SAMPLE]
            ),
            "prefix_digest": scheduler.pool.digest,
        }

    def _send(self, message: dict[str, Any]) -> None:
        self._outgoing += pack_frame(message)
        self._flush()

    def _flush(self) -> None:
        while self._outgoing:
            try:
                sent = self._socket.send(self._outgoing)
            except BlockingIOError:
                return
            except ConnectionError:
                self._is_open = False
                return
            del self._outgoing[:sent]
