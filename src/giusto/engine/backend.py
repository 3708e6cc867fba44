"""The embedded engine as the server sees it: satisfies `server.backend.Backend`.

Lives on the server's event loop. It turns text into tokens and back, sends submissions to the
engine's loop over a socket, and routes what comes back, one batch of events per step, to the open
requests. How the loop was started (process or thread) is the launcher's affair.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from giusto.core import events as ev
from giusto.core.clock import Clock
from giusto.core.errors import ModelError
from giusto.core.plan import Yield
from giusto.core.request import FinishReason, Reason, Request, Submission
from giusto.engine.stops import StopMatcher
from giusto.engine.tokenizer import Detokenizer, Tokenizer
from giusto.engine.wire import FrameReader, decode_event, decode_slo, encode_ask, pack_frame
from giusto.server.backend import (
    BackendDied,
    Chunk,
    ModelInfo,
    Refused,
    ReplicaView,
    TokenLogprob,
)

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 20


class Launched(Protocol):
    """A running engine loop."""

    def stop(self, timeout: float) -> None:
        """Wait for it to end, by force after `timeout` seconds."""
        ...


#: Starts an engine loop on its end of a socket pair.
Launcher = Callable[[socket.socket], Launched]


@dataclass(slots=True)
class _Sample:
    """One sample of an open request: its text so far lives in the two filters."""

    index: int
    request: Request
    detokenizer: Detokenizer
    stops: StopMatcher
    cached_tokens: int = 0
    num_accepted: int = 0
    demoted: Reason | None = None


@dataclass(slots=True)
class _Open:
    """An open submission: where its chunks go."""

    chunks: asyncio.Queue[Chunk | Exception] = field(default_factory=asyncio.Queue)


class EmbeddedBackend:
    """See the module. `start` must have returned before anything else is asked of it."""

    def __init__(self, launch: Launcher, clock: Clock, *, name: str | None = None) -> None:
        self._launch = launch
        self._clock = clock
        self._name = name
        self._launched: Launched | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._pump: asyncio.Task[None] | None = None
        self._model: ModelInfo | None = None
        self._tokenizer: Tokenizer | None = None
        self._open: dict[str, _Open] = {}
        self._samples: dict[str, _Sample] = {}
        self._observers: list[Callable[[ev.Event], None]] = []
        self._load = ReplicaView()
        self._asked: dict[int, asyncio.Future[dict[str, Any] | None]] = {}
        self._num_asked = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self.is_alive = False
        self.degraded: str | None = None

    # What the server asks

    @property
    def model(self) -> ModelInfo:
        assert self._model is not None, "start() has not returned"
        return self._model

    @property
    def tokenizer(self) -> Tokenizer:
        assert self._tokenizer is not None, "start() has not returned"
        return self._tokenizer

    def now(self) -> float:
        return self._clock.now()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(token_ids)

    def token_text(self, token_id: int) -> str:
        return self.tokenizer.token_text(token_id)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        plain = [dict(message) for message in messages]
        return self.tokenizer.render_chat(plain, add_generation_prompt)

    def load(self) -> ReplicaView:
        return self._load

    def subscribe(self, observe: Callable[[ev.Event], None]) -> None:
        self._observers.append(observe)

    async def submit(self, ask: Submission) -> AsyncGenerator[Chunk, None]:
        """Queue a request and iterate over its chunks; closing the iterator early aborts it.

        Raises Refused before the first chunk, BackendDied when the engine is gone.
        """
        if not self.is_alive:
            raise BackendDied("the engine is not running")
        request = self._enter(ask)
        num_left = ask.n
        try:
            self._send({"op": "submit", "ask": encode_ask(ask)})
            while num_left:
                chunk = await request.chunks.get()
                if isinstance(chunk, Exception):
                    num_left = 0
                    raise chunk
                num_left -= chunk.finish is not None
                yield chunk
        finally:
            if num_left and self.is_alive:
                self.abort(ask.id)
            self._leave(ask.id)

    def abort(self, request_id: str) -> None:
        self._send({"op": "abort", "id": request_id})

    def close_program(self, program_id: str) -> None:
        self._send({"op": "close_program", "id": program_id})

    async def explain(self, request_id: str) -> dict[str, Any] | None:
        """Ask the scheduler why a request stands where it stands; None for one it does not have.

        Raises BackendDied when the engine is gone.
        """
        if not self.is_alive:
            raise BackendDied("the engine is not running")
        self._num_asked += 1
        number = self._num_asked
        answer: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._send({"op": "explain", "ask": number, "id": request_id})
        try:
            return await answer
        finally:
            del self._asked[number]

    # Life

    async def start(self) -> None:
        """Start the loop and wait until the model is loaded and measured.

        Raises ModelError with the loop's own words when it cannot start.
        """
        ours, theirs = socket.socketpair()
        self._launched = await asyncio.to_thread(self._launch, theirs)
        reader, self._writer = await asyncio.open_connection(sock=ours)
        frames = FrameReader()
        try:
            ready = await self._ready(reader, frames)
            self._tokenizer = await asyncio.to_thread(Tokenizer, ready["folder"])
        except BaseException:
            await self.stop()
            raise
        self._model = ModelInfo(
            name=self._name or ready["name"],
            path=ready["folder"],
            vocab_size=ready["vocab_size"],
            max_model_len=ready["max_model_len"],
            defaults=ready["defaults"],
            policy=ready["policy"],
            speculation=ready["speculation"],
        )
        self._load = ReplicaView(free_blocks=ready["num_blocks"], total_blocks=ready["num_blocks"])
        self.is_alive = True
        self._pump = asyncio.create_task(self._receive(reader, frames))

    async def drain(self, timeout: float) -> None:
        self._send({"op": "drain"})
        try:
            await asyncio.wait_for(self._is_idle.wait(), timeout)
        except TimeoutError:
            log.warning("%d requests were still open after %.0f s", len(self._open), timeout)

    async def stop(self) -> None:
        """Close the connection, which ends the loop, and wait for it."""
        if self._writer is not None:
            self._writer.close()
        if self._pump is not None:
            await asyncio.wait([self._pump])
        if self._launched is not None:
            await asyncio.to_thread(self._launched.stop, 10.0)

    async def _ready(self, reader: asyncio.StreamReader, frames: FrameReader) -> dict[str, Any]:
        while data := await reader.read(_READ_BYTES):
            for message in frames.feed(data):
                if "failed" in message:
                    raise ModelError(message["failed"])
                ready: dict[str, Any] = message["ready"]
                return ready
        raise ModelError("the engine ended before it was ready; its log says why")

    # Requests

    def _enter(self, ask: Submission) -> _Open:
        if ask.id in self._samples:
            raise ValueError(f"request id {ask.id} is in use")
        requests = [Request.of(ask, index) for index in range(ask.n)]
        opened = self._open[ask.id] = _Open()
        self._is_idle.clear()
        for request in requests:
            detokenizer = Detokenizer(self.tokenizer)
            stops = StopMatcher(ask.sampling.stop)
            self._samples[request.id] = _Sample(request.sample, request, detokenizer, stops)
        return opened

    def _leave(self, request_id: str) -> None:
        self._open.pop(request_id, None)
        if not self._open:
            self._is_idle.set()

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pack_frame(message))

    # What comes back

    async def _receive(self, reader: asyncio.StreamReader, frames: FrameReader) -> None:
        try:
            while data := await reader.read(_READ_BYTES):
                for message in frames.feed(data):
                    self._take(message)
        except (ConnectionError, ValueError):
            log.exception("the connection to the engine broke")
        finally:
            self.is_alive = False
            for request in self._open.values():
                request.chunks.put_nowait(BackendDied("the engine ended"))
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(BackendDied("the engine ended"))

    def _take(self, message: dict[str, Any]) -> None:
        if "explained" in message:
            answer = self._asked.get(message["explained"])
            if answer is not None and not answer.done():
                answer.set_result(message["facts"])
            return
        self._load = ReplicaView(**message["load"])
        self.degraded = message["degraded"]
        for event in message["events"]:
            self._route(event)

    def _route(self, data: list[Any]) -> None:
        event = self._arrived(data) if data[0] == "Arrived" else decode_event(data)
        if event is None:
            return
        for observe in self._observers:
            try:
                observe(event)
            except Exception:
                # Those who only watch must not end the answers of those who wait.
                log.exception("an observer failed on %s", type(event).__name__)
        match event:
            case ev.Stepped(outcome):
                for request_id, made in outcome.yields.items():
                    self._deliver(request_id, made, outcome.ended)
            case ev.Admitted(request_id, _, cached_tokens):
                if request_id in self._samples:
                    self._samples[request_id].cached_tokens = cached_tokens
            case ev.Demoted(request_id, _, reason):
                if request_id in self._samples:
                    self._samples[request_id].demoted = reason
            case ev.Rejected(request_id, _, reason, retry_after):
                self._refuse(request_id, Refused(reason, retry_after))
            case ev.Finished(request_id, now, reason, message):
                self._end_sample(request_id, now, reason, message)

    def _arrived(self, data: list[Any]) -> ev.Event | None:
        """Book what the scheduler settled about a request: its SLO and from when it counts."""
        _, request_id, slo, origin, now = data
        sample = self._samples.get(request_id)
        if sample is None:
            return None
        sample.request.slo, sample.request.origin = decode_slo(slo), origin
        return ev.Arrived(sample.request, now)

    def _deliver(self, request_id: str, made: Yield, now: float) -> None:
        sample = self._samples.get(request_id)
        request = self._open.get(sample.request.group) if sample else None
        if sample is None or request is None or not made.tokens:
            return
        sample.num_accepted += made.accepted
        text = sample.stops.feed(sample.detokenizer.feed(made.tokens))
        request.chunks.put_nowait(
            Chunk(sample.index, text, made.tokens, now, logprobs=self._logprobs(made))
        )

    def _end_sample(
        self, request_id: str, now: float, reason: FinishReason, message: str | None
    ) -> None:
        sample = self._samples.pop(request_id, None)
        request = self._open.get(sample.request.group) if sample else None
        if sample is None or request is None:
            return
        rest = sample.stops.feed(sample.detokenizer.flush()) + sample.stops.flush()
        request.chunks.put_nowait(
            Chunk(
                sample.index,
                rest,
                (),
                now,
                finish=reason,
                error=message,
                cached_tokens=sample.cached_tokens,
                demoted=sample.demoted,
                accepted_draft_tokens=sample.num_accepted,
            )
        )

    def _refuse(self, request_id: str, refusal: Refused) -> None:
        sample = self._samples.pop(request_id, None)
        request = self._open.get(sample.request.group) if sample else None
        if sample is not None and request is not None and sample.index == 0:
            request.chunks.put_nowait(refusal)

    def _logprobs(self, made: Yield) -> tuple[TokenLogprob, ...] | None:
        if made.logprobs is None:
            return None
        return tuple(self._logprob(record) for record in made.logprobs)

    def _logprob(self, record: Any) -> TokenLogprob:
        token, logprob, top = record
        tokens = self.tokenizer
        return TokenLogprob(
            tokens.token_text(token),
            tokens.token_bytes(token),
            logprob,
            tuple((tokens.token_text(t), tokens.token_bytes(t), value) for t, value in top),
        )
