"""Errors as OpenAI clients expect them: a status, `{"error": {message, type, param, code}}`.

Everything that a route raises on purpose ends here. A refusal carries its machine-readable reason
as `code` and says when to try again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from giusto.core.errors import GiustoError, InvalidRequest
from giusto.core.request import Reason
from giusto.server.backend import BackendDied, Refused

#: Seconds until a refused client should try again when the scheduler does not say.
DEFAULT_RETRY_S = 1.0

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "overloaded_error",
    500: "server_error",
    503: "service_unavailable_error",
}

MESSAGES = {
    Reason.QUEUE_FULL: "too many requests are waiting",
    Reason.QUEUE_TOKENS_FULL: "too many prompt tokens are waiting",
    Reason.DRAINING: "the server is shutting down and takes no new requests",
    Reason.DEADLINE_UNREACHABLE: "the deadline cannot be met under the present load",
    Reason.DEADLINE_PASSED: "the deadline passed before the request could start",
    Reason.PROGRAM_MISSED: "the program's deadline has been missed",
    Reason.TOO_LARGE: "prompt and max_tokens together do not fit the server's memory",
}


class ApiError(GiustoError):
    """An answer that is not 200. `param` names the field in the client's words."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": str(self),
                "type": TYPES.get(self.status, TYPES[400]),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def api_error(error: Exception) -> ApiError:
    """Say what an exception means to a client; an unforeseen one tells nothing of its inside."""
    match error:
        case ApiError():
            return error
        case InvalidRequest():
            return ApiError(400, str(error), error.param, error.code)
        case Refused():
            return _refusal(error)
        case BackendDied():
            return ApiError(503, "the engine has stopped", None, "engine_dead", retry_after(None))
        case _:
            return ApiError(500, "the server failed on this request", None, "internal_error")


def retry_after(seconds: float | None) -> dict[str, str]:
    """The `Retry-After` header: whole seconds, at least one."""
    wait = DEFAULT_RETRY_S if seconds is None or not math.isfinite(seconds) else seconds
    return {"Retry-After": str(max(1, math.ceil(wait)))}


def _refusal(error: Refused) -> ApiError:
    message = f"refused: {MESSAGES[error.reason]}"
    if error.reason is Reason.TOO_LARGE:
        return ApiError(400, message, "max_tokens", error.reason.value)
    status = 503 if error.reason is Reason.DRAINING else 429
    return ApiError(status, message, None, error.reason.value, retry_after(error.retry_after))
