"""What an answer says: its choices, its usage, and the verdict on its promise.

`Tally` follows the chunks of one request. The verdict is `metrics.verdict`'s, on records made
here, so that a client reads what the metrics count. Times in the `slo` block are milliseconds
from arrival, queueing included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from giusto.core.events import Arrived, Event
from giusto.core.request import FinishReason, Submission
from giusto.core.slo import SLO, BestEffort, Deadline, Program, Streaming
from giusto.metrics.records import Record
from giusto.metrics.verdict import judge
from giusto.server.backend import Chunk, TokenLogprob
from giusto.server.convert import Ask
from giusto.server.errors import ApiError

#: JSON has no minus infinity; this is what OpenAI and vLLM send for it.
LEAST_LOGPROB = -9999.0


class Promises:
    """What the scheduler made of each open submission's promise: fed by `Arrived`.

    A call that is judged with its program gets the program's SLO and counts from its opening.
    """

    def __init__(self) -> None:
        self._open: dict[str, tuple[SLO, float]] = {}

    def observe(self, event: Event) -> None:
        if isinstance(event, Arrived) and event.request.id in self._open:
            self._open[event.request.id] = (event.request.slo, event.request.origin)

    def expect(self, asks: Sequence[Submission]) -> None:
        """Follow these until `forget`."""
        for ask in asks:
            self._open[ask.id] = (ask.slo, ask.arrival)

    def of(self, ask: Submission) -> tuple[SLO, float]:
        return self._open.get(ask.id, (ask.slo, ask.arrival))

    def forget(self, asks: Sequence[Submission]) -> None:
        for ask in asks:
            self._open.pop(ask.id, None)


@dataclass(slots=True)
class Choice:
    """One sample as far as it has come; `texts` and `logprobs` only where a body is collected."""

    times: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    num_chars: int = 0
    finish: FinishReason | None = None
    end: float = 0.0


class Tally:
    """Follows one request's chunks: counts, times, and how it ended."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.choices = [Choice() for _ in range(ask.num_choices)]
        self.num_open = ask.num_choices
        self.num_completion_tokens = 0
        self.accepted_draft_tokens = 0
        self.demoted: str | None = None
        self._cached = [0] * len(ask.submissions)

    def add(self, prompt: int, chunk: Chunk) -> int:
        """Book a chunk of prompt number `prompt`; returns the index of its choice.

        Raises ApiError when the chunk says that the sample failed.
        """
        index = prompt * self.ask.n + chunk.sample
        choice = self.choices[index]
        choice.times += [chunk.now] * len(chunk.token_ids)
        self.num_completion_tokens += len(chunk.token_ids)
        self.accepted_draft_tokens += chunk.accepted_draft_tokens
        self._cached[prompt] = max(self._cached[prompt], chunk.cached_tokens)
        if chunk.demoted is not None:
            self.demoted = chunk.demoted.value
        if chunk.finish is not None:
            choice.finish, choice.end = chunk.finish, chunk.now
            self.num_open -= 1
            if chunk.finish is FinishReason.ERROR:
                raise ApiError(500, chunk.error or "the engine failed", None, "engine_error")
            if chunk.finish is FinishReason.ABORT:
                raise ApiError(503, "the server ended the request", None, "aborted")
        return index

    def collect(self, index: int, chunk: Chunk) -> None:
        """Keep a chunk's content, for an answer in one body."""
        choice = self.choices[index]
        choice.texts.append(chunk.text)
        choice.token_ids += chunk.token_ids
        choice.logprobs += chunk.logprobs or ()

    def usage(self) -> dict[str, Any]:
        prompt = self.ask.num_prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.num_completion_tokens,
            "total_tokens": prompt + self.num_completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached)},
        }

    def slo(self, promises: Promises) -> dict[str, Any]:
        """The `slo` block: what was promised, what came of it."""
        ask = self.ask
        resolved = [promises.of(submission) for submission in ask.submissions]
        verdicts = [
            judge(self._records(i, *resolved[i]), _own_length) for i in range(len(resolved))
        ]
        slo = resolved[0][0]
        deliveries = [r.delivery for v in verdicts for r in v.records]
        # The calls of a program earn together, when it ends.
        is_alone = not isinstance(slo, Program)
        return {
            "class": ask.promise.service.name,
            "kind": verdicts[0].kind,
            "targets": targets(slo),
            "weight": ask.promise.weight,
            "raised": ask.promise.is_raised,
            "ttft_ms": _ms(max(d.ttft for d in deliveries)),
            "tpot_ms": _ms(max(d.tpot for d in deliveries)),
            "e2e_ms": _ms(max(d.e2e for d in deliveries)),
            "met": all(v.is_attained for v in verdicts),
            "gain": _total(v.gain for v in verdicts) if is_alone else None,
            "gain_possible": _total(v.possible for v in verdicts),
            "accepted_draft_tokens": self.accepted_draft_tokens,
            "demoted": self.demoted,
        }

    def _records(self, prompt: int, slo: SLO, origin: float) -> list[Record]:
        ask = self.ask.submissions[prompt]
        samples = self.choices[prompt * ask.n : (prompt + 1) * ask.n]
        return [
            Record(
                id=ask.id,
                group=ask.id,
                service_class=ask.service_class,
                slo=slo,
                arrival=ask.arrival,
                origin=origin,
                prompt_tokens=ask.num_prompt_tokens,
                token_times=tuple(sample.times),
                closed=sample.end if sample.finish else None,
                finish=sample.finish,
                weight=ask.weight,
                cap=ask.cap,
            )
            for sample in samples
        ]


def targets(slo: SLO) -> dict[str, float]:
    """The promised times in milliseconds, those that there are."""
    match slo:
        case Streaming(ttft, tpot):
            pairs: Mapping[str, float | None] = {"ttft_ms": ttft, "tpot_ms": tpot}
        case Deadline(deadline) | Program(deadline):
            pairs = {"deadline_ms": deadline}
        case BestEffort():
            pairs = {}
    return {name: round(t * 1000, 3) for name, t in pairs.items() if t is not None}


def body(tally: Tally, promises: Promises) -> dict[str, Any]:
    """The whole answer as one object."""
    ask = tally.ask
    answer: dict[str, Any] = {
        "id": ask.id,
        "object": "chat.completion" if ask.is_chat else "text_completion",
        "created": ask.created,
        "model": ask.model,
        "choices": [_choice(ask, i, choice) for i, choice in enumerate(tally.choices)],
        "usage": tally.usage(),
        "slo": tally.slo(promises),
    }
    if ask.promise.tier is not None:
        answer["service_tier"] = ask.promise.tier
    if ask.return_token_ids:
        answer["prompt_token_ids"] = prompt_ids(ask)
    return answer


def prompt_ids(ask: Ask) -> list[int] | list[list[int]]:
    """The prompt's tokens; a list of such where there are several prompts."""
    ids = [list(submission.prompt_ids) for submission in ask.submissions]
    return ids[0] if len(ids) == 1 else ids


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Log-probabilities in the shape of chat completions."""

    def entry(token: str, raw: bytes, logprob: float) -> dict[str, Any]:
        return {"token": token, "logprob": _finite(logprob), "bytes": list(raw)}

    content = [
        entry(t.token, t.raw, t.logprob) | {"top_logprobs": [entry(*top) for top in t.top]}
        for t in tokens
    ]
    return {"content": content, "refusal": None}


def legacy_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """Log-probabilities in the shape of legacy completions; `offset` is in characters."""
    offsets = []
    for t in tokens:
        offsets.append(offset)
        offset += len(t.token)
    return {
        "tokens": [t.token for t in tokens],
        "token_logprobs": [_finite(t.logprob) for t in tokens],
        "top_logprobs": [
            {top: _finite(logprob) for top, _, logprob in t.top} | {t.token: _finite(t.logprob)}
            for t in tokens
        ],
        "text_offset": offsets,
    }


def _choice(ask: Ask, index: int, choice: Choice) -> dict[str, Any]:
    text = "".join(choice.texts)
    has_logprobs = ask.submissions[0].sampling.logprobs is not None
    logprobs = None
    if has_logprobs:
        shape = chat_logprobs if ask.is_chat else lambda tokens: legacy_logprobs(tokens, 0)
        logprobs = shape(choice.logprobs)
    content: dict[str, Any] = {"text": text}
    if ask.is_chat:
        content = {"message": {"role": "assistant", "content": text, "refusal": None}}
    if ask.return_token_ids:
        content["token_ids"] = choice.token_ids
    return {
        "index": index,
        **content,
        "logprobs": logprobs,
        "finish_reason": choice.finish.value if choice.finish else None,
    }


def _own_length(record: Record) -> tuple[float, bool]:
    """An answer is judged when it has ended: its length is what it is."""
    return float(len(record.token_times)), False


def _total(parts: Iterable[float]) -> float:
    return round(math.fsum(parts), 6)


def _finite(logprob: float) -> float:
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB


def _ms(seconds: float) -> float | None:
    return round(seconds * 1000, 3) if math.isfinite(seconds) else None
