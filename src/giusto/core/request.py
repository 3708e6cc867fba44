"""Requests: what a client asked for, and how far the scheduler has brought it.

`Submission` is the ask, frozen plain data that crosses process borders. `Request` is the
scheduler's own state of one sample of it. Policies are typed against `RequestView`, which has no
text, no true output length and no `max_tokens`.

There are no phases: a request has known tokens and computed tokens, and each step lets the second
catch up (the model of vLLM's V1 scheduler).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from giusto.core.slo import SLO, BestEffort, Streaming, token_due

DEFAULT_CAP = 2048
BEST_EFFORT = BestEffort()


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Reason(StrEnum):
    """Why a request was refused or demoted; the machine-readable word that clients see."""

    QUEUE_FULL = "queue_full"
    QUEUE_TOKENS_FULL = "queue_tokens_full"
    DRAINING = "draining"
    DEADLINE_UNREACHABLE = "deadline_unreachable"
    DEADLINE_PASSED = "deadline_passed"
    PROGRAM_MISSED = "program_missed"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn and when the output ends. `logprobs` is how many top ones to return."""

    max_tokens: int = DEFAULT_CAP
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class ProgramRef:
    """A call's place in a program, as far as the client tells it. `deadline` is in seconds."""

    id: str
    call: str
    parents: tuple[str, ...] = ()
    stage: int | None = None
    final: bool = False
    app: str | None = None
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """One request as it was asked: plain data, the same for engine, simulator and plug-in.

    `slo` is what the request asked for, or else its class's; `has_own_slo` tells which. A call
    without its own is judged with its program where that has a deadline. `block_keys` lets a
    driver without text state prefix identity: one key per full block of the prompt. `priority`:
    smaller is more urgent, as in vLLM.
    """

    id: str
    arrival: float
    num_prompt_tokens: int
    prompt_ids: tuple[int, ...] = ()
    slo: SLO = BEST_EFFORT
    has_own_slo: bool = True
    service_class: str = "default"
    weight: float = 1.0
    priority: int = 0
    tenant: str = ""
    program: ProgramRef | None = None
    cap: int = DEFAULT_CAP
    sampling: SamplingParams = SamplingParams()
    n: int = 1
    model: str = ""
    cache_salt: str = ""
    block_keys: tuple[bytes, ...] | None = None

    def __post_init__(self) -> None:
        if min(self.num_prompt_tokens, self.sampling.max_tokens, self.n) < 1:
            raise ValueError("a request has a prompt, an output and a sample of at least one")
        if self.prompt_ids and len(self.prompt_ids) != self.num_prompt_tokens:
            raise ValueError(
                f"{len(self.prompt_ids)} prompt ids for a prompt of {self.num_prompt_tokens}"
            )


class RequestView(Protocol):
    """What a policy may know of a request. Read-only; times in seconds, counts in tokens.

    Satisfies `slo.ProgressView`: `due(request.slo, request)`.
    """

    @property
    def id(self) -> str: ...
    @property
    def group(self) -> str:
        """Id of the submission; siblings (`n` > 1) share it."""
        ...

    @property
    def arrival(self) -> float: ...
    @property
    def origin(self) -> float:
        """The instant from which the SLO counts: arrival, or the program's opening."""
        ...

    @property
    def slo(self) -> SLO: ...
    @property
    def service_class(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def priority(self) -> int: ...
    @property
    def tenant(self) -> str: ...
    @property
    def program(self) -> str | None: ...
    @property
    def call(self) -> str | None: ...
    @property
    def parents(self) -> tuple[str, ...]: ...
    @property
    def stage(self) -> int | None: ...
    @property
    def app(self) -> str | None: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def cap(self) -> int:
        """The class's bound on output tokens, never a drawn length."""
        ...

    @property
    def num_tokens(self) -> int:
        """Known tokens: the prompt and what was emitted."""
        ...

    @property
    def num_computed_tokens(self) -> int:
        """Tokens whose KV is in memory, by committed steps only."""
        ...

    @property
    def num_in_flight_tokens(self) -> int:
        """Tokens granted by plans that are not committed yet."""
        ...

    @property
    def num_output_tokens(self) -> int: ...
    @property
    def num_remaining_tokens(self) -> int:
        """Tokens that could be granted now: known ones neither computed nor in flight, and the
        one that a step in flight will make known."""
        ...

    @property
    def first_scheduled(self) -> float | None: ...
    @property
    def first_token(self) -> float | None: ...
    @property
    def last_token(self) -> float | None: ...
    @property
    def late_tokens(self) -> int: ...
    @property
    def has_begun(self) -> bool:
        """Whether a token of any of the submission's samples is known: the client may have been
        answered, so that it may be demoted, but no longer refused."""
        ...

    @property
    def num_preemptions(self) -> int: ...
    @property
    def resident_since(self) -> float | None:
        """When it last became resident in KV memory; None while waiting."""
        ...

    @property
    def is_demoted(self) -> bool: ...


@dataclass(slots=True, eq=False)
class Request:
    """The scheduler's state of one sample of a submission; only the scheduler writes it.

    `token_ids` holds known tokens where the driver has text, and is empty in the simulator.
    `serial` orders requests of equal arrival; `is_leaving` marks one that was aborted or preempted
    while steps were in flight: it goes when the last of them commits, for good if it `has_ended`.
    """

    id: str
    group: str
    sample: int
    arrival: float
    origin: float
    slo: SLO
    has_own_slo: bool
    service_class: str
    weight: float
    priority: int
    tenant: str
    ref: ProgramRef | None
    num_prompt_tokens: int
    cap: int
    sampling: SamplingParams
    token_ids: list[int]
    block_keys: list[bytes]
    cache_salt: str = ""
    num_computed_tokens: int = 0
    num_in_flight_tokens: int = 0
    num_in_flight_outputs: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    first_scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    late_tokens: int = 0
    num_preemptions: int = 0
    resident_since: float | None = None
    is_demoted: bool = False
    blocks: list[int] = field(default_factory=list)
    serial: int = 0
    has_begun: bool = False
    is_leaving: bool = False
    has_ended: bool = False

    @classmethod
    def of(cls, ask: Submission, sample: int = 0) -> Request:
        """Make the state of sample number `sample`; siblings are named `id#sample`."""
        return cls(
            id=ask.id if sample == 0 else f"{ask.id}#{sample}",
            group=ask.id,
            sample=sample,
            arrival=ask.arrival,
            origin=ask.arrival,
            slo=ask.slo,
            has_own_slo=ask.has_own_slo,
            service_class=ask.service_class,
            weight=ask.weight,
            priority=ask.priority,
            tenant=ask.tenant,
            ref=ask.program,
            num_prompt_tokens=ask.num_prompt_tokens,
            cap=ask.cap,
            sampling=ask.sampling,
            token_ids=list(ask.prompt_ids),
            block_keys=list(ask.block_keys or ()),
            cache_salt=ask.cache_salt,
        )

    @property
    def program(self) -> str | None:
        return self.ref.id if self.ref else None

    @property
    def call(self) -> str | None:
        return self.ref.call if self.ref else None

    @property
    def parents(self) -> tuple[str, ...]:
        return self.ref.parents if self.ref else ()

    @property
    def stage(self) -> int | None:
        return self.ref.stage if self.ref else None

    @property
    def app(self) -> str | None:
        return self.ref.app if self.ref else None

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def num_remaining_tokens(self) -> int:
        # Asked several times per resident and step: spelt out instead of asking other properties.
        outputs = self.num_output_tokens + self.num_in_flight_outputs
        if self.is_leaving or outputs >= self.sampling.max_tokens:
            return 0
        known = self.num_prompt_tokens + outputs
        return known - self.num_computed_tokens - self.num_in_flight_tokens

    @property
    def max_total_tokens(self) -> int:
        """Most tokens it can ever hold; decides whether it fits the pool alone."""
        return self.num_prompt_tokens + self.sampling.max_tokens

    def launch(self, num_tokens: int) -> None:
        """Count granted tokens in flight; reaching the last known one will yield another."""
        self.num_in_flight_outputs += num_tokens == self.num_remaining_tokens
        self.num_in_flight_tokens += num_tokens

    def land(self, num_tokens: int, accepted: int) -> None:
        """Count tokens of the oldest step in flight as computed, accepted draft tokens too."""
        self.num_in_flight_tokens -= num_tokens
        self.num_computed_tokens += num_tokens
        self.num_in_flight_outputs -= self.num_computed_tokens == self.num_tokens
        self.num_computed_tokens += accepted

    def emit(self, tokens: Sequence[int], ended: float) -> None:
        """Append what a step that ended at `ended` made known, counting what came late."""
        if not tokens:
            return
        if self.first_token is None:
            self.first_token = ended
        slo = self.slo
        if isinstance(slo, Streaming):
            k, origin, first = self.num_output_tokens, self.origin, self.first_token
            for _ in tokens:
                self.late_tokens += ended > token_due(slo, k, origin, first)
                k += 1
        self.last_token = ended
        self.num_output_tokens += len(tokens)
        if self.token_ids:
            self.token_ids.extend(tokens)

    @property
    def output_ids(self) -> Sequence[int]:
        return self.token_ids[self.num_prompt_tokens :]
