"""The seam between HTTP and whatever makes tokens.

The embedded engine satisfies `Backend`, and so does a simulated one under a wall clock. The
server never sees a token id table, a tensor or a scheduler: text in, text out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from giusto.core.events import Event
from giusto.core.request import FinishReason, Reason, Submission


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What `/v1/models`, `/version` and validation need.

    `defaults` are the model's generation defaults; `policy` names the scheduling policy,
    `speculation` how tokens are guessed ahead.
    """

    name: str
    path: str
    vocab_size: int
    max_model_len: int
    defaults: Mapping[str, float]
    policy: str = ""
    speculation: str = "off"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its log-probability and the most likely ones beside it, best first."""

    token: str
    raw: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one step brought to one sample.

    `text` never ends in half a character and never shows a stop string; it may be empty while
    text is held back. `num_tokens` counts tokens of this chunk, `token_ids` are they. `now` is
    the end of the step that made them.
    """

    sample: int
    text: str
    token_ids: tuple[int, ...]
    now: float
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish: FinishReason | None = None
    error: str | None = None
    cached_tokens: int = 0
    demoted: Reason | None = None
    accepted_draft_tokens: int = 0


class Refused(Exception):
    """Raised by `submit` before the first chunk when the scheduler refused the request."""

    def __init__(self, reason: Reason, retry_after: float | None = None) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.retry_after = retry_after


class BackendDied(Exception):
    """The engine is gone; every open request ends with this and `/health` answers 503."""


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """How loaded a replica is: exactly what `/load` returns and routers read."""

    running: int = 0
    waiting: int = 0
    queued_prefill_tokens: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    step_time: float = 0.0
    backlog_by_class: Mapping[str, int] | None = None
    prefix_digest: str = ""
    profile: str = ""


class Backend(Protocol):
    """An engine as the server sees it. All coroutines run on the server's event loop.

    `encode`, `decode` and `render_chat` may also be called from a worker thread: the server does
    so for long texts, to keep its loop free.
    """

    @property
    def model(self) -> ModelInfo: ...
    @property
    def is_alive(self) -> bool: ...
    @property
    def degraded(self) -> str | None:
        """What it does without since that failed, in a few words; None where nothing did."""
        ...

    def now(self) -> float:
        """The clock by which arrivals and chunks are stamped."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, token_ids: Sequence[int]) -> str: ...
    def token_text(self, token_id: int) -> str: ...
    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """Render the model's chat template; InvalidRequest when the template refuses."""
        ...

    def submit(self, ask: Submission) -> AsyncGenerator[Chunk, None]:
        """Queue a request and iterate over its chunks until every sample has finished.

        Raises `Refused` before the first chunk. Closing the iterator early aborts the request.
        """
        ...

    def abort(self, request_id: str) -> None: ...
    def close_program(self, program_id: str) -> None: ...
    async def explain(self, request_id: str) -> dict[str, Any] | None:
        """Why a request stands where it stands, as JSON data; None when it is not open.

        Raises `BackendDied`.
        """
        ...

    def subscribe(self, observe: Callable[[Event], None]) -> None:
        """Call `observe` with every event, on the server's loop; for metrics."""
        ...

    def load(self) -> ReplicaView: ...
    async def start(self) -> None: ...
    async def drain(self, timeout: float) -> None:
        """Refuse new requests, wait until the open ones have ended or `timeout` seconds."""
        ...

    async def stop(self) -> None: ...
