"""The outermost layer, as plain ASGI: arrival, request ids, size caps, and who is calling.

An instant is taken as soon as a request's head is there; from it all of a request's times count.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from giusto.config import ApiKey, ServerSettings, digest
from giusto.server.errors import ApiError

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

#: What is refused is read on for so long at most, and for so many times the cap on bodies.
DRAIN_SECONDS = 2.0
DRAIN_TIMES = 8

#: Who calls a server without keys.
ANYONE = ApiKey(name="", digest=b"")


class Edge:
    """Middleware: stamps the arrival, names the request, and refuses what is too large."""

    def __init__(self, app: ASGIApp, now: Callable[[], float], settings: ServerSettings) -> None:
        self.app = app
        self._now = now
        self._max_body = settings.max_body_bytes
        self._max_head = settings.max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(12)
        state = scope.setdefault("state", {})
        state["arrival"] = self._now()
        state["request_id"] = request_id

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        if refusal := self._refusal(scope, headers):
            refusal.headers["Connection"] = "close"
            await self._drain(receive)
            await refusal.response()(scope, receive, named)
            return
        await self.app(scope, self._capped(receive), named)

    def _refusal(self, scope: Scope, headers: Headers) -> ApiError | None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        size += len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        if size > self._max_head:
            return ApiError(
                431, f"headers exceed {self._max_head} bytes", None, "headers_too_large"
            )
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            return ApiError(400, "content-length must be a number", "content-length")
        if len(length) > 15 or int(length) > self._max_body:
            return self._too_large()
        return None

    def _capped(self, receive: Receive) -> Receive:
        """Count what is received: a chunked body does not say its length beforehand."""
        received = 0

        async def capped() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body:
                if message.get("more_body"):
                    await self._drain(receive)
                raise self._too_large()
            return message

        return capped

    async def _drain(self, receive: Receive) -> None:
        """Read on for a while what is refused anyway.

        A connection that is closed on unread data is reset, and the client may lose the answer.
        """
        drained = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while drained < DRAIN_TIMES * self._max_body:
                    message = await receive()
                    drained += len(message.get("body", b""))
                    if message["type"] != "http.request" or not message.get("more_body"):
                        return

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body exceeds {self._max_body} bytes", None, "body_too_large")


def authenticate(headers: Headers, keys: Sequence[ApiKey]) -> ApiKey:
    """Find the caller's key in constant time over all keys; ApiError 401 when it is none of them.

    Without keys the server is open and everybody is `ANYONE`.
    """
    if not keys:
        return ANYONE
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    given = digest(secret.strip() if scheme.lower() == "bearer" else "")
    found = None
    for key in keys:
        if hmac.compare_digest(key.digest, given):
            found = key
    if found is None:
        raise ApiError(
            401,
            "a valid API key is needed: Authorization: Bearer KEY",
            None,
            "invalid_api_key",
            {"WWW-Authenticate": "Bearer"},
        )
    return found
