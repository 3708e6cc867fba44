"""One request over HTTP: sent, streamed, timed, turned into a `Record`.

Times are seconds since the run began. A token's time is the arrival of the read that brought its
event; a request arrives when it is sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import httpx

from giusto.bench.wire import (
    Delta,
    Dialect,
    SseParser,
    compose,
    error_text,
    read_event,
    refusal,
    spread,
)
from giusto.core.request import FinishReason
from giusto.core.slo import Program
from giusto.metrics.records import ProgramCall, Record
from giusto.workload.records import Entry

#: Rough length of a prompt for which the server gave no count, in characters per token.
CHARACTERS_PER_TOKEN = 4

FINISHES = {"length": FinishReason.LENGTH, "abort": FinishReason.ERROR, "error": FinishReason.ERROR}


@dataclass(frozen=True, slots=True)
class Reply:
    """A record and the text that came with it."""

    record: Record
    text: str = ""


@dataclass(slots=True)
class Flight:
    """A request under way: what it was promised and what came so far."""

    record: Record
    events: list[tuple[float, int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    seen: int = 0
    total: int | None = None
    finish: str | None = None
    error: str | None = None

    def take(self, delta: Delta, now: float) -> None:
        """Book one event that arrived at `now`."""
        if delta.error is not None:
            self.error = delta.error
            return
        if delta.num_tokens is not None:
            fresh = delta.num_tokens
        elif delta.tokens_so_far is not None:
            fresh = delta.tokens_so_far - self.seen
        else:
            fresh = 1 if delta.text else 0
        if fresh > 0:
            self.events.append((now, fresh))
            self.seen += fresh
        if delta.text:
            self.texts.append(delta.text)
        if delta.total_tokens is not None:
            self.total = delta.total_tokens
        if delta.prompt_tokens is not None:
            self.record = replace(
                self.record,
                prompt_tokens=delta.prompt_tokens,
                cached_tokens=max(self.record.cached_tokens, delta.cached_tokens),
            )
        self.finish = delta.finish or self.finish

    def end(self, now: float) -> Reply:
        """The stream has ended: normally only with a finish reason and without an error."""
        if self.error is None and self.finish is None:
            self.error = "the stream broke off"
        finish = FINISHES.get(self.finish or "", FinishReason.STOP)
        if self.error is not None:
            finish = FinishReason.ERROR
        return self.close(now, finish, self.error)

    def close(self, now: float, finish: FinishReason, error: str | None = None) -> Reply:
        """End it at `now` for the given reason."""
        times = spread(self.events, self.total)
        record = replace(self.record, token_times=times, closed=now, finish=finish, error=error)
        return Reply(record, "".join(self.texts))


class Client:
    """Sends entries to one server. `now` tells the seconds since the run began."""

    def __init__(
        self, http: httpx.AsyncClient, dialect: Dialect, now: Callable[[], float], timeout: float
    ) -> None:
        self._http = http
        self._dialect = dialect
        self._timeout = timeout
        self.now = now

    async def send(
        self, entry: Entry, answers: Mapping[str, str], opened: float | None = None
    ) -> Reply:
        """Send one entry and wait for its end; `opened` is when its program opened, if before.

        Never raises for what the server or the network does. A cancelled task closes its request
        as cancelled by the client.
        """
        ask = compose(entry, answers, self._dialect)
        request = self._http.build_request("POST", ask.path, json=ask.body, headers=ask.headers)
        flight = Flight(new_record(entry, self.now(), opened))
        try:
            async with asyncio.timeout(self._timeout):
                return await self._stream(request, flight)
        except TimeoutError:
            error = f"no end within {self._timeout:g} s"
        except asyncio.CancelledError:
            return flight.close(self.now(), FinishReason.ABORT)
        except (httpx.HTTPError, OSError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        return flight.close(self.now(), FinishReason.ERROR, error)

    async def _stream(self, request: httpx.Request, flight: Flight) -> Reply:
        response = await self._http.send(request, stream=True)
        try:
            if response.status_code != 200:
                return self._refused(
                    response.status_code, response.headers, await response.aread(), flight
                )
            parser = SseParser()
            async for data in response.aiter_bytes():
                now = self.now()
                for event in parser.feed(data):
                    if event != "[DONE]":
                        flight.take(read_event(event), now)
            return flight.end(self.now())
        finally:
            await response.aclose()

    def _refused(
        self, status: int, headers: Mapping[str, str], content: bytes, flight: Flight
    ) -> Reply:
        try:
            body = json.loads(content)
        except ValueError:
            body = content.decode("utf-8", "replace")
        reason = refusal(status, headers, body)
        if reason is not None:
            return Reply(replace(flight.record, closed=self.now(), refused=reason))
        error = f"HTTP {status}: {error_text(body)}"
        return flight.close(self.now(), FinishReason.ERROR, error)


def new_record(entry: Entry, now: float, opened: float | None = None) -> Record:
    """The record of an entry as it arrives, with a rough prompt length until the server tells."""
    program = None
    if entry.step is not None:
        program = ProgramCall(
            entry.step.program,
            entry.step.call,
            now if opened is None else opened,
            entry.step.deadline,
        )
    text = entry.prompt or "".join(message.content for message in entry.messages)
    promise = entry.promise
    return Record(
        id=entry.id,
        group=entry.id,
        service_class=entry.service_class,
        slo=promise,
        arrival=now,
        origin=program.opened if program and isinstance(promise, Program) else now,
        prompt_tokens=entry.prompt_tokens or max(1, len(text) // CHARACTERS_PER_TOKEN),
        tenant=entry.tenant,
        weight=entry.weight,
        cap=entry.max_tokens,
        program=program,
    )
