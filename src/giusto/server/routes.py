"""The routes: what each does with a request, from the caller's key to the answer."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from fastapi import Request
from starlette.responses import JSONResponse, Response

from giusto import __version__
from giusto.config import ApiKey, ServerSettings
from giusto.core.errors import InvalidRequest
from giusto.core.events import Event
from giusto.core.request import Reason
from giusto.server.answer import Promises
from giusto.server.backend import Backend, BackendDied, Refused
from giusto.server.convert import Call, chat_ids, check_ids, off_loop, text_ids, to_ask
from giusto.server.edge import authenticate
from giusto.server.errors import ApiError, retry_after
from giusto.server.openai import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    DETOKENIZE_FIELDS,
    MAX_ID,
    TOKENIZE_FIELDS,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    Open,
    Rule,
    TokenizeRequest,
    parse,
)
from giusto.server.slos import ADMIN_NEEDED, arrival, resolve, scoped, tenant
from giusto.server.stream import answer

W = TypeVar("W", bound=Open)


class Metrics(Protocol):
    """What renders `/metrics`."""

    def observe(self, event: Event) -> None: ...
    def render(self) -> tuple[bytes, str]: ...


class Routes:
    """Handlers over one backend. `is_draining` turns `/health` to 503 and refuses requests."""

    def __init__(self, backend: Backend, settings: ServerSettings, metrics: Metrics) -> None:
        self.backend = backend
        self.settings = settings
        self.metrics = metrics
        self.is_draining = False
        self.promises = Promises()
        self.models = settings.served_model_names or (backend.model.name,)
        self._created = _unix_time()
        backend.subscribe(self.promises.observe)
        backend.subscribe(metrics.observe)

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        return await self._generate(request, ChatRequest, CHAT_FIELDS, "chatcmpl-")

    async def completions(self, request: Request) -> Response:
        """Continue a prompt, or several."""
        return await self._generate(request, CompletionRequest, COMPLETION_FIELDS, "cmpl-")

    async def list_models(self, request: Request) -> Response:
        """List the names under which the model is served."""
        self._authenticate(request)
        return JSONResponse({"object": "list", "data": [self._card(m) for m in self.models]})

    async def get_model(self, request: Request) -> Response:
        """Describe one of those names."""
        self._authenticate(request)
        return JSONResponse(self._card(self._known_model(request.path_params["model_id"])))

    async def tokenize(self, request: Request) -> Response:
        """Turn a prompt or messages into tokens."""
        self._authenticate(request)
        wire, size = await self._read(request, TokenizeRequest, TOKENIZE_FIELDS)
        if (wire.prompt is None) == (wire.messages is None):
            raise InvalidRequest("state either 'prompt' or 'messages'", "prompt")
        backend = self.backend

        def tokens() -> list[int]:
            special = wire.add_special_tokens
            if wire.messages is None:
                text = wire.prompt or ""
                return text_ids(text, backend, special=special is not False, where="prompt")
            generate = wire.add_generation_prompt is not False
            return chat_ids(wire.messages, backend, special=special is True, generate=generate)

        ids = await off_loop(tokens, size)
        strings = [backend.token_text(i) for i in ids] if wire.return_token_strs else None
        return JSONResponse(
            {
                "count": len(ids),
                "max_model_len": backend.model.max_model_len,
                "tokens": ids,
                "token_strs": strings,
            }
        )

    async def detokenize(self, request: Request) -> Response:
        """Turn tokens into text."""
        self._authenticate(request)
        wire, size = await self._read(request, DetokenizeRequest, DETOKENIZE_FIELDS)
        check_ids(wire.tokens, self.backend.model.vocab_size, "tokens")
        text = await off_loop(lambda: self.backend.decode(wire.tokens), size)
        return JSONResponse({"prompt": text})

    async def close_program(self, request: Request) -> Response:
        """Close a program of the caller's; closing an unknown or closed one changes nothing."""
        key = self._authenticate(request)
        program_id: str = request.path_params["program_id"]
        if len(program_id) > MAX_ID:
            raise InvalidRequest(f"a program's id has at most {MAX_ID} characters", "program_id")
        self.backend.close_program(scoped(key, program_id))
        return JSONResponse({"id": program_id, "object": "program", "closed": True})

    async def health(self, request: Request) -> Response:
        """Tell whether requests are taken: 503 while draining and when the engine is gone.

        `speculation` tells why it is off, where it failed: requests go on without it.
        """
        status = "draining" if self.is_draining else "ok"
        if not self.backend.is_alive:
            status = "dead"
        if status == "ok":
            failed = self.backend.degraded
            lost = {"speculation": f"off: {failed}"} if failed else {}
            return JSONResponse({"status": status, **lost})
        return JSONResponse({"status": status}, status_code=503, headers=retry_after(None))

    async def live(self, request: Request) -> Response:
        """Tell that the process answers."""
        return JSONResponse({"status": "ok"})

    async def version(self, request: Request) -> Response:
        """Name the server, so that clients know what it understands."""
        model = self.backend.model
        return JSONResponse(
            {
                "version": __version__,
                "server": "giusto",
                "scheduling_policy": model.policy,
                "speculation": model.speculation,
            }
        )

    async def metrics_page(self, request: Request) -> Response:
        """Prometheus metrics; needs a key where there are keys, for labels tell of the load."""
        self._authenticate(request)
        page, content_type = self.metrics.render()
        return Response(page, headers={"Content-Type": content_type})

    async def load(self, request: Request) -> Response:
        """How loaded this replica is, for routers."""
        self._authenticate(request)
        return JSONResponse(asdict(self.backend.load()))

    async def explain(self, request: Request) -> Response:
        """Tell an operator why an open request stands where it stands."""
        key = self._authenticate(request)
        if not key.is_admin:
            raise ApiError(
                403, "this route needs an admin key: admin = true in [[keys]]", code=ADMIN_NEEDED
            )
        request_id: str = request.path_params["request_id"]
        facts = await self.backend.explain(request_id)
        if facts is None:
            raise ApiError(
                404,
                f"no open request '{request_id[:128]}'; ask by the id that its chunks carry",
                "request_id",
                "request_not_found",
            )
        return JSONResponse(facts)

    async def _generate(
        self,
        request: Request,
        model: type[ChatRequest] | type[CompletionRequest],
        rules: Mapping[str, Rule],
        prefix: str,
    ) -> Response:
        key = self._authenticate(request)
        if self.is_draining:
            raise Refused(Reason.DRAINING, self.settings.drain_timeout_s)
        if not self.backend.is_alive:
            raise BackendDied
        wire, size = await self._read(request, model, rules)
        request_id: str = request.state.request_id
        promise = resolve(wire, request.headers, key, self.settings, request_id)
        call = Call(
            id=prefix + _unique(request),
            model=wire.model or self.models[0],
            arrival=arrival(request.headers, key, request.state.arrival),
            tenant=tenant(request.headers, key),
            created=_unix_time(),
            num_bytes=size,
        )
        ask = await to_ask(wire, self.backend, call, promise)
        return answer(ask, self.backend, self.promises)

    async def _read(
        self, request: Request, model: type[W], rules: Mapping[str, Rule]
    ) -> tuple[W, int]:
        """Read and check a JSON body; also tells its size in bytes."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(
                415,
                "the body must be JSON: send Content-Type: application/json",
                "content-type",
                "unsupported_media_type",
            )
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(
                415,
                "compressed bodies are not accepted",
                "content-encoding",
                "unsupported_media_type",
            )
        raw = await request.body()
        wire = parse(model, rules, raw)
        if wire.model:
            self._known_model(wire.model)
        return wire, len(raw)

    def _known_model(self, name: str) -> str:
        if name not in self.models:
            served = ", ".join(self.models)
            raise ApiError(
                404,
                f"the model '{name[:128]}' does not exist; served: {served}",
                "model",
                "model_not_found",
            )
        return name

    def _card(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "giusto",
            "root": self.backend.model.name,
            "parent": None,
            "max_model_len": self.backend.model.max_model_len,
        }

    def _authenticate(self, request: Request) -> ApiKey:
        return authenticate(request.headers, self.settings.keys)


def _unix_time() -> int:
    return int(datetime.now(tz=UTC).timestamp())


def _unique(request: Request) -> str:
    """The request's id; one that the client chose may be in use, so it gets a tail of ours."""
    request_id: str = request.state.request_id
    if request_id != request.headers.get("x-request-id"):
        return request_id
    return f"{request_id}-{secrets.token_hex(4)}"
