"""Draw one token per row of logits; called by `runner` once per step.

A draw depends on (seed, sample, position) and on the row's own logits, never on its batch: one
uniform number per draw comes from a hash of the three and is looked up in the row's cumulative
distribution. So an answer repeats under any batching, chunking, preemption and speculation.

Order of the steps: mask, logit bias, penalties; then, unless greedy, temperature, min-p, top-k and
top-p. Log-probabilities are the model's own, before all of these.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from giusto.core.request import Request, SamplingParams

#: Below this temperature a draw is greedy: dividing by it would overflow float32.
GREEDY_BELOW = 1e-5
#: Top-p looks at so many of the likeliest tokens, then at more; a full sort is rarely needed.
_WIDTHS = (512, 8192, sys.maxsize)

#: Tokens that a draw supposes after those that a request knows: its path in a token tree.
TokenPath = Sequence[int]
#: Allowed token ids after a request's tokens and a path, or None for all: the seam for structured
#: output.
MaskProvider = Callable[[Request, TokenPath], Sequence[int] | None]


@dataclass(frozen=True, slots=True)
class Draw:
    """One token; with its log-probability and the likeliest alternatives when asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def uniform(seed: int, sample: int, position: int) -> float:
    """A number in [0, 1) that is a function of its arguments alone."""
    digest = blake2b(f"{seed}/{sample}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


class Sampler:
    """Batched sampling; remembers token counts of requests that have penalties."""

    def __init__(
        self, vocab_size: int, eos_token_ids: Sequence[int], mask: MaskProvider | None = None
    ) -> None:
        self.vocab_size = vocab_size
        self.eos_token_ids = tuple(eos_token_ids)
        self.mask = mask
        self._counts: dict[str, _TokenCounts] = {}

    def forget(self, request_id: str) -> None:
        """Drop what is remembered of a request that has ended."""
        self._counts.pop(request_id, None)

    def is_plain(self, request: Request) -> bool:
        """Whether its next token is the likeliest one, and nothing else is asked for."""
        params = request.sampling
        return (
            params.temperature < GREEDY_BELOW
            and self.mask is None
            and params.logprobs is None
            and not params.logit_bias
            and not _has_penalties(params)
            and request.num_output_tokens >= params.min_tokens
        )

    @torch.inference_mode()
    def draw(
        self, requests: Sequence[Request], logits: Tensor, paths: Sequence[TokenPath] | None = None
    ) -> list[Draw]:
        """Draw the next token of each request from float32 logits [requests, vocab].

        Modifies `logits`. `paths` are tokens that each draw supposes after what its request knows,
        none where not given. The position of a draw is the number of output tokens before it.
        """
        if paths is None:
            paths = [()] * len(requests)
        top = {
            row: self._top(request, logits[row])
            for row, request in enumerate(requests)
            if request.sampling.logprobs is not None
        }
        raw = {row: logits[row].clone() for row in top}
        for row, (request, path) in enumerate(zip(requests, paths, strict=True)):
            self._shape(request, path, logits[row])
        tokens = torch.argmax(logits, dim=-1).tolist()
        random = [
            row
            for row, request in enumerate(requests)
            if request.sampling.temperature >= GREEDY_BELOW
        ]
        if random:
            numbers = [_number(requests[row], paths[row]) for row in random]
            params = [requests[row].sampling for row in random]
            picked = self._pick(params, numbers, logits[random])
            for row, token in zip(random, picked, strict=True):
                tokens[row] = token
        return [
            Draw(token, _logprob(raw[row], token), top[row]) if row in top else Draw(token)
            for row, token in enumerate(tokens)
        ]

    def _top(self, request: Request, logits: Tensor) -> tuple[tuple[int, float], ...]:
        count = request.sampling.logprobs or 0
        values, ids = torch.log_softmax(logits, dim=-1).topk(count)
        return tuple(zip(ids.tolist(), values.tolist(), strict=True))

    def _shape(self, request: Request, path: TokenPath, logits: Tensor) -> None:
        """Apply in place what holds for greedy and random draws alike."""
        params = request.sampling
        if self.mask is not None and (allowed := self.mask(request, path)) is not None:
            kept = logits[list(allowed)].clone()
            logits.fill_(float("-inf"))
            logits[list(allowed)] = kept
        if params.logit_bias:
            ids, biases = zip(*params.logit_bias, strict=True)
            logits[list(ids)] += torch.tensor(biases, device=logits.device)
        if _has_penalties(params):
            counts = self._counts.get(request.id)
            if counts is None:
                counts = _TokenCounts(self.vocab_size, logits.device)
                self._counts[request.id] = counts
            counts.catch_up(request)
            counts.penalise(params, logits, path)
        if request.num_output_tokens + len(path) < params.min_tokens:
            logits[[*self.eos_token_ids, *params.stop_token_ids]] = float("-inf")

    def _pick(
        self, params: Sequence[SamplingParams], numbers: list[float], logits: Tensor
    ) -> list[int]:
        """Draw from the tempered and truncated distribution of each row [requests, vocab]."""
        scaled = logits / _column([p.temperature for p in params], logits)
        if any(p.min_p > 0 for p in params):
            # log(0) is -inf: a row without min-p keeps everything.
            floor = _column([p.min_p for p in params], logits).log()
            scaled.masked_fill_(scaled < scaled.amax(-1, keepdim=True) + floor, float("-inf"))
        tokens = _invert(torch.softmax(scaled, dim=-1), numbers)
        for row, p in enumerate(params):
            if 0 < p.top_k < self.vocab_size or p.top_p < 1:
                tokens[row] = _pick_truncated(scaled[row], p, numbers[row])
        return tokens


class _TokenCounts:
    """How often each token occurs in a request's prompt and in its output, [vocab] each."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.prompt = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self.output = torch.zeros(vocab_size, dtype=torch.float32, device=device)
        self._num_seen = 0

    def catch_up(self, request: Request) -> None:
        start, split = self._num_seen, request.num_prompt_tokens
        if start < split:
            self.prompt[request.token_ids[start:split]] = True
        fresh = request.token_ids[max(start, split) :]
        if fresh:
            ids = torch.tensor(fresh, device=self.output.device)
            self.output.index_add_(0, ids, torch.ones(len(fresh), device=self.output.device))
        self._num_seen = len(request.token_ids)

    def penalise(self, params: SamplingParams, logits: Tensor, path: TokenPath) -> None:
        output = self.output
        if path:
            output = output.clone()
            for token in path:
                output[token] += 1
        if params.repetition_penalty != 1:
            seen = self.prompt | (output > 0)
            factor = params.repetition_penalty
            punished = torch.where(logits > 0, logits / factor, logits * factor)
            logits.copy_(torch.where(seen, punished, logits))
        logits -= params.frequency_penalty * output
        logits -= params.presence_penalty * (output > 0)


def _has_penalties(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
    )


def _number(request: Request, path: TokenPath) -> float:
    seed = request.sampling.seed
    assert seed is not None, "the driver gives every random request a seed"
    return uniform(seed, request.sample, request.num_output_tokens + len(path))


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _pick_truncated(scaled: Tensor, params: SamplingParams, number: float) -> int:
    """Draw among the top-k tokens, and of these the fewest that hold top_p of the probability.

    Top-p is measured within the top-k, as in transformers. Looks at the likeliest few first: they
    hold the nucleus nearly always, and a full sort costs ten times as much.
    """
    size = scaled.shape[0]
    is_top_k = 0 < params.top_k < size
    for width in (params.top_k,) if is_top_k else _WIDTHS:
        values, ids = scaled.topk(min(width, size))
        probs = (values - torch.logsumexp(values if is_top_k else scaled, dim=-1)).exp()
        if is_top_k or width >= size or float(probs.sum()) >= params.top_p:
            break
    keep = max(1, int((probs.cumsum(-1) - probs < params.top_p).sum()))
    return int(ids[_invert(probs[None, :keep], [number])[0]])


def _invert(probs: Tensor, numbers: list[float]) -> list[int]:
    """Look uniform numbers up in the cumulative distributions [rows, n] of any sum."""
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    targets = cumulative[:, -1:] * torch.tensor(
        numbers, dtype=torch.float64, device=probs.device
    ).unsqueeze(1)
    found = torch.searchsorted(cumulative, targets, right=True).squeeze(1).tolist()
    size = probs.shape[1]
    # Rounding may point past the end; then the last token with any probability is meant.
    return [i if i < size else int(row.nonzero()[-1]) for i, row in zip(found, probs, strict=True)]


def _logprob(logits: Tensor, token: int) -> float:
    return float(logits[token] - torch.logsumexp(logits, dim=-1))
