"""Stand-ins for tests: a clock that moves when told, and a backend that answers from a script."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from giusto.core.clock import VirtualClock
from giusto.core.errors import InvalidRequest
from giusto.core.events import Arrived, Event, Finished, Rejected
from giusto.core.request import FinishReason, Reason, Request, Submission
from giusto.core.slo import SLO
from giusto.server.backend import (
    BackendDied,
    Chunk,
    ModelInfo,
    Refused,
    ReplicaView,
    TokenLogprob,
)

BOS, EOS = 256, 257


class MockClock(VirtualClock):
    """A clock that moves only by `advance`; starts away from zero, as real clocks do."""

    def __init__(self, time: float = 1000.0) -> None:
        super().__init__(time)


class ByteTokenizer:
    """One token per UTF-8 byte, a begin and an end token."""

    vocab_size = 258

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(i for i in token_ids if i < BOS).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id])


@dataclass
class Script:
    """What the backend does with requests; tests change it between requests.

    `answer` is the text, or a function of the submission and the sample. A request that meets
    `pause_after` tokens waits there until `resume` is called or it is aborted.
    """

    answer: str | Callable[[Submission, int], str] = "Hello, world!"
    refuse: Reason | None = None
    retry_after: float | None = None
    pause_after: int | None = None
    fail_after: int | None = None
    die_after: int | None = None
    demote: Reason | None = None
    resolve: Callable[[Submission], tuple[SLO, float]] | None = None
    first_step: float = 0.05
    step: float = 0.01


@dataclass
class FakeBackend(ByteTokenizer):
    """A `Backend` without a model. Deterministic: each step moves the clock by `script.step`."""

    script: Script = field(default_factory=Script)
    clock: MockClock = field(default_factory=MockClock)
    max_model_len: int = 512
    defaults: Mapping[str, float] = field(default_factory=dict)
    is_alive: bool = True
    degraded: str | None = None
    submitted: list[Submission] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    closed_programs: list[str] = field(default_factory=list)
    open: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = ModelInfo(
            "fake", "/nowhere", self.vocab_size, self.max_model_len, self.defaults
        )
        self.paused = threading.Event()
        self.was_aborted = threading.Event()
        self.is_draining = False
        self._observers: list[Callable[[Event], None]] = []
        self._resumed = asyncio.Event()
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def now(self) -> float:
        return self.clock.now()

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        if any(m["content"] == "refuse me" for m in messages):
            raise InvalidRequest("the chat template refuses these messages", "messages")
        lines = []
        for m in messages:
            calls = "".join(str(c) for c in m.get("tool_calls", ()))
            lines.append(f"<{m['role']}>{m['content']}{calls}\n")
        return "".join(lines) + "<assistant>" * add_generation_prompt

    def subscribe(self, observe: Callable[[Event], None]) -> None:
        self._observers.append(observe)

    def load(self) -> ReplicaView:
        return ReplicaView(
            running=len(self.open), free_blocks=10, total_blocks=10, backlog_by_class={}
        )

    async def explain(self, request_id: str) -> dict[str, Any] | None:
        return {"id": request_id, "state": "running"} if request_id in self.open else None

    def close_program(self, program_id: str) -> None:
        self.closed_programs.append(program_id)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        self.was_aborted.set()

    async def start(self) -> None:
        self.calls.append("start")

    async def drain(self, timeout: float) -> None:
        self.calls.append("drain")
        self.is_draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.settle(), timeout)

    async def settle(self) -> None:
        """Wait until no request is open."""
        while self.open:
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        self.calls.append("stop")
        self.is_alive = False
        self._resumed.set()

    def resume(self) -> None:
        """Let paused requests go on; may be called from any thread."""
        assert self._loop is not None
        self.script.pause_after = None
        self._loop.call_soon_threadsafe(self._resumed.set)

    async def submit(self, ask: Submission) -> AsyncGenerator[Chunk, None]:
        self._loop = asyncio.get_running_loop()
        self.submitted.append(ask)
        self._tell(Arrived(self._arrive(ask), self.now()))
        reason = Reason.DRAINING if self.is_draining else self.script.refuse
        if reason is not None:
            self._tell(Rejected(ask.id, self.now(), reason, self.script.retry_after))
            raise Refused(reason, self.script.retry_after)
        self.open.add(ask.id)
        finished = False
        try:
            async for chunk in self._chunks(ask):
                yield chunk
            finished = True
            self._tell(Finished(ask.id, self.now(), FinishReason.STOP))
        finally:
            self.open.discard(ask.id)
            self._changed.set()
            if not finished:
                self.abort(ask.id)
                self._tell(Finished(ask.id, self.now(), FinishReason.ABORT))

    def _arrive(self, ask: Submission) -> Request:
        request = Request.of(ask)
        if self.script.resolve is not None:
            request.slo, request.origin = self.script.resolve(ask)
        return request

    async def _chunks(self, ask: Submission) -> AsyncGenerator[Chunk, None]:
        answers = [self._answer(ask, sample) for sample in range(ask.n)]
        for k in range(max(len(ids) for ids, _ in answers)):
            await self._step(k)
            self.clock.advance(self.script.step if k else self.script.first_step)
            for sample, (ids, finish) in enumerate(answers):
                if k < len(ids):
                    yield self._chunk(ask, sample, k, ids, finish)

    async def _step(self, k: int) -> None:
        await asyncio.sleep(0)
        if k == self.script.pause_after:
            self._resumed.clear()
            self.paused.set()
            await self._resumed.wait()
        if k == self.script.die_after or not self.is_alive:
            self.is_alive = False
            raise BackendDied

    def _answer(self, ask: Submission, sample: int) -> tuple[list[int], FinishReason]:
        script = self.script.answer
        text = script if isinstance(script, str) else script(ask, sample)
        for stop in ask.sampling.stop:
            text = text.partition(stop)[0]
        ids = [*text.encode(), EOS]
        if len(ids) > ask.sampling.max_tokens:
            return ids[: ask.sampling.max_tokens], FinishReason.LENGTH
        return ids, FinishReason.STOP

    def _chunk(
        self, ask: Submission, sample: int, k: int, ids: list[int], finish: FinishReason
    ) -> Chunk:
        is_last = k == len(ids) - 1
        has_failed = k == self.script.fail_after
        token = ids[k]
        # As a real detokeniser: nothing until a character is whole.
        text = self.decode(ids[: k + 1]).rstrip("\ufffd")
        before = self.decode(ids[:k]).rstrip("\ufffd")
        return Chunk(
            sample=sample,
            text=text[len(before) :],
            token_ids=(token,),
            now=self.now(),
            logprobs=self._logprobs(ask, token),
            finish=FinishReason.ERROR if has_failed else finish if is_last else None,
            error="the script says so" if has_failed else None,
            cached_tokens=min(4, ask.num_prompt_tokens),
            demoted=self.script.demote,
            accepted_draft_tokens=1 if k else 0,
        )

    def _logprobs(self, ask: Submission, token: int) -> tuple[TokenLogprob, ...] | None:
        count = ask.sampling.logprobs
        if count is None:
            return None
        text = self.token_text(token)
        top = tuple(
            (self.token_text((token + i) % 128), bytes([(token + i) % 128]), -0.5 - i)
            for i in range(count)
        )
        return (TokenLogprob(text, text.encode(), -0.5, top),)

    def _tell(self, event: Event) -> None:
        for observe in self._observers:
            observe(event)
