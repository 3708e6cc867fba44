"""Generating over HTTP: chunks in, server-sent events or one body out, cancelled on disconnect.

The status line leaves with the first chunk, so that until then a request may still be refused
with a status of its own. Events are written from a prepared prefix: no model, no copy per chunk.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from giusto.server.answer import (
    Promises,
    Tally,
    body,
    chat_logprobs,
    legacy_logprobs,
    prompt_ids,
)
from giusto.server.backend import Backend, Chunk
from giusto.server.convert import Ask
from giusto.server.errors import api_error

DONE = b"data: [DONE]\n\n"
EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Asks buffering proxies to pass chunks on at once.
    (b"x-accel-buffering", b"no"),
]

Chunks = AsyncGenerator[tuple[int, Chunk], None]


class WhileConnected(Response):
    """A response that runs `work` until it ends or the client has gone, whichever is first."""

    def __init__(self, work: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._work(scope, receive, send))
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # A cancelled generator closes, and that aborts the request in the backend.
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if not work.cancelled():
            work.result()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def answer(ask: Ask, backend: Backend, promises: Promises) -> Response:
    """Submit a request and answer it, streaming or not."""

    async def work(scope: Scope, receive: Receive, send: Send) -> None:
        promises.expect(ask.submissions)
        try:
            async with contextlib.aclosing(_chunks(backend, ask)) as chunks:
                if ask.stream:
                    await _stream(ask, chunks, promises, send)
                else:
                    whole = await _collect(ask, chunks, promises)
                    await JSONResponse(whole)(scope, receive, send)
        finally:
            promises.forget(ask.submissions)

    return WhileConnected(work)


async def _collect(ask: Ask, chunks: Chunks, promises: Promises) -> dict[str, Any]:
    tally = Tally(ask)
    async for prompt, chunk in chunks:
        tally.collect(tally.add(prompt, chunk), chunk)
    return body(tally, promises)


async def _stream(ask: Ask, chunks: Chunks, promises: Promises, send: Send) -> None:
    events = Events(ask, promises)
    prompt, chunk = await anext(chunks)
    first = events.event(prompt, chunk)
    await send({"type": "http.response.start", "status": 200, "headers": EVENT_HEADERS})
    try:
        await _send(send, first)
        async for prompt, chunk in chunks:
            if event := events.event(prompt, chunk):
                await _send(send, event)
        await _send(send, events.ending())
    except (asyncio.CancelledError, ClientDisconnect):
        raise
    except Exception as error:
        # The status line has gone: the error can only be told in the stream.
        await _send(send, b"data: %s\n\n" % json.dumps(api_error(error).body()).encode())
    await _send(send, b"", more=False)


async def _send(send: Send, content: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": more})


async def _chunks(backend: Backend, ask: Ask) -> Chunks:
    """The chunks of all prompts as they come, each with its prompt's number."""
    if len(ask.submissions) == 1:
        async with contextlib.aclosing(backend.submit(ask.submissions[0])) as source:
            async for chunk in source:
                yield 0, chunk
        return
    queue: asyncio.Queue[tuple[int, Chunk | Exception | None]] = asyncio.Queue()

    async def pump(i: int) -> None:
        try:
            async with contextlib.aclosing(backend.submit(ask.submissions[i])) as source:
                async for chunk in source:
                    queue.put_nowait((i, chunk))
            queue.put_nowait((i, None))
        except Exception as error:
            queue.put_nowait((i, error))

    tasks = [asyncio.create_task(pump(i)) for i in range(len(ask.submissions))]
    try:
        num_open = len(tasks)
        while num_open:
            i, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield i, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Events:
    """Writes chunks as server-sent events in OpenAI's shape."""

    def __init__(self, ask: Ask, promises: Promises) -> None:
        self.ask = ask
        self.tally = Tally(ask)
        self._promises = promises
        self._has_logprobs = ask.submissions[0].sampling.logprobs is not None
        self._begun = [False] * ask.num_choices
        head: dict[str, Any] = {
            "id": ask.id,
            "object": "chat.completion.chunk" if ask.is_chat else "text_completion",
            "created": ask.created,
            "model": ask.model,
        }
        if ask.promise.tier is not None:
            head["service_tier"] = ask.promise.tier
        self._head = "data: " + json.dumps(head)[:-1] + ","
        # OpenAI sends a null usage in every chunk before the last, when usage was asked for.
        self._tail = ',"usage":null}\n\n' if ask.include_usage else "}\n\n"

    def event(self, prompt: int, chunk: Chunk) -> bytes:
        """Write one chunk; empty when it has nothing that a client could see."""
        index = self.tally.add(prompt, chunk)
        is_first = not self._begun[index]
        ids = chunk.token_ids if self.ask.return_token_ids else ()
        if not (chunk.text or chunk.finish or is_first or chunk.logprobs or ids):
            return b""
        self._begun[index] = True
        finish = "null" if chunk.finish is None else f'"{chunk.finish.value}"'
        parts = [
            self._head,
            f'"choices":[{{"index":{index},',
            self._content(chunk.text, is_first),
            f',"logprobs":{self._logprobs(index, chunk)},"finish_reason":{finish}',
        ]
        if self.ask.return_token_ids:
            parts.append(f',"token_ids":{json.dumps(ids)}')
        parts.append("}]")
        if self.ask.return_token_ids and is_first and index == 0:
            parts.append(f',"prompt_token_ids":{json.dumps(prompt_ids(self.ask))}')
        if not self.tally.num_open and not self.ask.include_usage:
            parts.append(f',"slo":{self._slo()}')
        if self.ask.continuous_usage:
            parts.append(f',"usage":{json.dumps(self.tally.usage())}}}\n\n')
        else:
            parts.append(self._tail)
        return "".join(parts).encode()

    def ending(self) -> bytes:
        """The usage chunk where it was asked for, and the end mark."""
        if not self.ask.include_usage:
            return DONE
        usage = json.dumps(self.tally.usage())
        last = f'{self._head}"choices":[],"usage":{usage},"slo":{self._slo()}}}\n\n'
        return last.encode() + DONE

    def _content(self, text: str, is_first: bool) -> str:
        quoted = json.dumps(text)
        if not self.ask.is_chat:
            return f'"text":{quoted}'
        if is_first:
            return f'"delta":{{"role":"assistant","content":{quoted}}}'
        return f'"delta":{{"content":{quoted}}}' if text else '"delta":{}'

    def _logprobs(self, index: int, chunk: Chunk) -> str:
        if not self._has_logprobs:
            return "null"
        tokens = chunk.logprobs or ()
        if self.ask.is_chat:
            return json.dumps(chat_logprobs(tokens))
        choice = self.tally.choices[index]
        shape = legacy_logprobs(tokens, choice.num_chars)
        choice.num_chars += sum(len(t.token) for t in tokens)
        return json.dumps(shape)

    def _slo(self) -> str:
        return json.dumps(self.tally.slo(self._promises))
