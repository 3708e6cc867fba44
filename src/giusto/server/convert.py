"""From a parsed body to `Submission`s: tokens, limits, sampling parameters and promise.

Whatever depends on the model (vocabulary, context length, generation defaults) is checked here;
what a body may look like at all is `openai.py`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from giusto.core.errors import InvalidRequest
from giusto.core.request import SamplingParams, Submission
from giusto.server.backend import Backend, ModelInfo
from giusto.server.messages import Message, to_template
from giusto.server.openai import ChatRequest, CompletionRequest, Sampled
from giusto.server.slos import Promise

#: No tokeniser packs more characters than this into a token on average; a text beyond it cannot
#: fit the context and is refused before the work of encoding it.
MAX_CHARS_PER_TOKEN = 128
#: Bodies beyond this many bytes are rendered and encoded off the event loop.
INLINE_BYTES = 32 << 10
#: Prompts times samples of one request.
MAX_CHOICES = 128

#: Policies that order by `priority`; a backend that names none is taken to.
HONOUR_PRIORITY = ("", "priority")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request as the edge saw it: who, when, and how much body."""

    id: str
    model: str
    arrival: float
    tenant: str
    created: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that is ready to be submitted, and how its answer shall look."""

    id: str
    created: int
    model: str
    is_chat: bool
    submissions: tuple[Submission, ...]
    promise: Promise
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool

    @property
    def n(self) -> int:
        return self.submissions[0].n

    @property
    def num_choices(self) -> int:
        return len(self.submissions) * self.n

    @property
    def num_prompt_tokens(self) -> int:
        return sum(ask.num_prompt_tokens for ask in self.submissions)


async def to_ask(
    wire: ChatRequest | CompletionRequest, backend: Backend, call: Call, promise: Promise
) -> Ask:
    """Make the submissions of a request; InvalidRequest when the model cannot serve it."""
    if wire.priority and backend.model.policy not in HONOUR_PRIORITY:
        raise InvalidRequest(
            f"the server's scheduling policy, {backend.model.policy}, does not order by "
            "'priority'; state an SLO or a weight, or leave it 0",
            "priority",
        )
    prompts = await off_loop(lambda: _prompts(wire, backend), call.num_bytes)
    n = wire.n or 1
    if len(prompts) * n > MAX_CHOICES:
        raise InvalidRequest(
            f"prompts times n must be at most {MAX_CHOICES}, got {len(prompts) * n}", "n"
        )
    is_chat = isinstance(wire, ChatRequest)
    where = "messages" if is_chat else "prompt"
    submissions = tuple(
        _submission(wire, backend.model, call, promise, (i, ids, where))
        for i, ids in enumerate(prompts)
    )
    if len(submissions) > 1:
        submissions = tuple(replace(ask, id=f"{ask.id}/{i}") for i, ask in enumerate(submissions))
    options = wire.stream_options
    return Ask(
        id=call.id,
        created=call.created,
        model=call.model,
        is_chat=is_chat,
        submissions=submissions,
        promise=promise,
        stream=bool(wire.stream),
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        return_token_ids=bool(wire.return_token_ids),
    )


async def off_loop(work: Callable[[], T], num_bytes: int) -> T:
    """Do CPU work inline when it is short, else in a thread: streams must not wait for it."""
    return work() if num_bytes <= INLINE_BYTES else await asyncio.to_thread(work)


def chat_ids(
    messages: Sequence[Message], backend: Backend, *, special: bool, generate: bool
) -> list[int]:
    """Render messages by the model's template and encode them."""
    text = backend.render_chat(to_template(messages), add_generation_prompt=generate)
    return text_ids(text, backend, special=special, where="messages")


def text_ids(text: str, backend: Backend, *, special: bool, where: str) -> list[int]:
    """Encode a text, unless it is so long that it cannot fit."""
    limit = backend.model.max_model_len
    if len(text) > limit * MAX_CHARS_PER_TOKEN:
        raise InvalidRequest(
            f"this model's context has {limit} tokens; a text of {len(text)} characters "
            "cannot fit it",
            where,
            "context_length_exceeded",
        )
    return backend.encode(text, add_special_tokens=special)


def check_ids(ids: Sequence[int], vocab_size: int, where: str) -> None:
    """Refuse token ids that the model does not have."""
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        raise InvalidRequest(f"'{where}': token ids must lie in 0 … {vocab_size - 1}", where)


def _prompts(wire: ChatRequest | CompletionRequest, backend: Backend) -> list[list[int]]:
    special = wire.add_special_tokens
    if isinstance(wire, ChatRequest):
        generate = wire.add_generation_prompt is not False
        return [chat_ids(wire.messages, backend, special=special is True, generate=generate)]
    given: Sequence[str | int | list[int]] = (
        [wire.prompt] if isinstance(wire.prompt, str) else wire.prompt
    )
    if given and isinstance(given[0], int):
        given = [[i for i in given if isinstance(i, int)]]
    prompts = []
    for prompt in given:
        if isinstance(prompt, str):
            ids = text_ids(prompt, backend, special=special is not False, where="prompt")
        else:
            ids = prompt if isinstance(prompt, list) else [prompt]
            check_ids(ids, backend.model.vocab_size, "prompt")
        prompts.append(ids)
    if not prompts:
        raise InvalidRequest("'prompt' is empty", "prompt")
    return prompts


def _submission(
    wire: ChatRequest | CompletionRequest,
    model: ModelInfo,
    call: Call,
    promise: Promise,
    prompt: tuple[int, list[int], str],
) -> Submission:
    index, ids, where = prompt
    program = promise.program
    if program is not None and index:
        program = replace(program, call=f"{program.call}/{index}")
    return Submission(
        id=call.id,
        arrival=call.arrival,
        num_prompt_tokens=len(ids),
        prompt_ids=tuple(ids),
        slo=promise.slo,
        has_own_slo=promise.is_own,
        service_class=promise.service.name,
        weight=promise.weight,
        priority=promise.priority,
        tenant=call.tenant,
        program=program,
        cap=promise.service.cap,
        sampling=_sampling(wire, model, _max_tokens(wire, model, promise, len(ids), where)),
        n=wire.n or 1,
        model=call.model,
        cache_salt=wire.cache_salt or "",
    )


def _max_tokens(
    wire: ChatRequest | CompletionRequest,
    model: ModelInfo,
    promise: Promise,
    num_prompt_tokens: int,
    where: str,
) -> int:
    """Resolve the output limit: what was asked if it fits, else the rest of the context."""
    limit = model.max_model_len
    room = limit - num_prompt_tokens
    if num_prompt_tokens < 1:
        raise InvalidRequest(f"'{where}' is empty: there is no token to start from", where)
    if room < 1:
        raise InvalidRequest(
            f"this model's context has {limit} tokens; the prompt has {num_prompt_tokens}",
            where,
            "context_length_exceeded",
        )
    name, asked = "max_tokens", wire.max_tokens
    if isinstance(wire, ChatRequest) and wire.max_completion_tokens is not None:
        name, asked = "max_completion_tokens", wire.max_completion_tokens
    if asked is None:
        return min(room, promise.service.cap)
    if asked > room:
        raise InvalidRequest(
            f"this model's context has {limit} tokens; {num_prompt_tokens} of the prompt and "
            f"{asked} of '{name}' exceed it",
            name,
            "context_length_exceeded",
        )
    return asked


def _sampling(
    wire: ChatRequest | CompletionRequest, model: ModelInfo, max_tokens: int
) -> SamplingParams:
    defaults = model.defaults
    min_tokens = wire.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"'min_tokens' ({min_tokens}) exceeds the output limit ({max_tokens})", "min_tokens"
        )
    stop_ids = tuple(wire.stop_token_ids or ())
    check_ids(stop_ids, model.vocab_size, "stop_token_ids")
    stops = [wire.stop] if isinstance(wire.stop, str) else wire.stop or []
    top_k = int(_either(wire.top_k, defaults, "top_k", 0))
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=_either(wire.temperature, defaults, "temperature", 1.0),
        top_p=_either(wire.top_p, defaults, "top_p", 1.0),
        top_k=min(max(top_k, 0), model.vocab_size),
        min_p=_either(wire.min_p, defaults, "min_p", 0.0),
        repetition_penalty=_either(wire.repetition_penalty, defaults, "repetition_penalty", 1.0),
        presence_penalty=wire.presence_penalty or 0.0,
        frequency_penalty=wire.frequency_penalty or 0.0,
        logit_bias=_logit_bias(wire, model.vocab_size),
        # Generators take unsigned seeds; two's complement keeps distinct seeds distinct.
        seed=None if wire.seed is None else wire.seed % (1 << 64),
        stop=tuple(stop for stop in stops if stop),
        stop_token_ids=stop_ids,
        ignore_eos=bool(wire.ignore_eos),
        logprobs=_logprobs(wire),
    )


def _either(
    given: float | None, defaults: Mapping[str, float], name: str, otherwise: float
) -> float:
    return float(defaults.get(name, otherwise) if given is None else given)


def _logprobs(wire: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(wire, CompletionRequest):
        return wire.logprobs
    if wire.top_logprobs and not wire.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true", "top_logprobs")
    return (wire.top_logprobs or 0) if wire.logprobs else None


def _logit_bias(wire: Sampled, vocab_size: int) -> tuple[tuple[int, float], ...]:
    biases = []
    for token, bias in (wire.logit_bias or {}).items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise InvalidRequest("'logit_bias': keys must be token ids", "logit_bias")
        if int(token) >= vocab_size:
            raise InvalidRequest(
                f"'logit_bias': token ids must lie in 0 … {vocab_size - 1}", "logit_bias"
            )
        biases.append((int(token), bias))
    return tuple(biases)
