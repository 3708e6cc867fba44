"""The draft model while serving: what it holds likely after paths of token trees.

`spec.guessing` grows the trees and asks here, level by level, for all requests at once. The model
has a small cache of its own, one row of consecutive slots per request; a target's blocks hold its
own keys and values alone. A row begins with the last tokens of a prompt and is begun anew, with the
last half, when it is full: so a draft of short context serves answers of any length, cached
prefixes and preempted requests need no bookkeeping, and what a row forgot costs guesses and nothing
else. Nodes of a tree are computed again at each level, behind the tokens that are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from giusto.core.clock import Clock
from giusto.core.plan import Spec
from giusto.engine.draft import LoadedDraft
from giusto.engine.tensors import BatchTensors, KVCache, bytes_per_block
from giusto.spec.drafter import Ask
from giusto.spec.guessing import Guess, Tips
from giusto.spec.tree import ROOT, TokenTree

#: Up to so many new tokens of a request go into the pass that guesses; more have one before it.
_FEW = 16
#: Share of the target's KV memory that the draft takes beside it, at most.
_SHARE = 16


@dataclass(slots=True)
class _Row:
    """A request's row: the token at `start` is its first, `length` tokens are computed."""

    number: int
    start: int = 0
    length: int = 0


@dataclass(slots=True)
class _Pass:
    """A batch while it is put together."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    query_lens: list[int] = field(default_factory=list)
    context_lens: list[int] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    logits: list[int] = field(default_factory=list)
    trees: dict[int, Tensor] = field(default_factory=dict)


def num_rows(draft: LoadedDraft, kv_bytes: int, max_num_seqs: int) -> int:
    """Requests that are drafted for at once, beside so many bytes of the target's KV memory."""
    per_row = bytes_per_block(draft.config, draft.context, draft.decoder.dtype)
    return min(max_num_seqs, max(1, kv_bytes // _SHARE // per_row))


class DraftModel:
    """A draft model with its cache; satisfies `spec.guessing.Guesser`."""

    def __init__(self, draft: LoadedDraft, num_rows: int) -> None:
        self.context = draft.context
        self.num_rows = num_rows
        self._decoder = draft.decoder
        self._outputs = draft.output_tokens
        self._kv = KVCache(
            draft.config, num_rows, draft.context, draft.decoder.dtype, draft.decoder.device
        )
        self._rows: dict[str, _Row] = {}  # the least recently used first
        self._free = list(range(num_rows))
        self._work = 0, 0

    @torch.inference_mode()
    def follow(self, asked: Sequence[Tips], width: int) -> list[list[list[Guess]]]:
        rows = self._claim(asked)
        served = [(tips, row) for tips, row in zip(asked, rows, strict=True) if row is not None]
        if not served:
            return [[] for _ in asked]
        self._catch_up(served)
        made = _Pass()
        for tips, row in served:
            self._add_tree(made, tips, row)
        guesses = iter(self._likeliest(self._run(made), width))
        return [
            [] if row is None else [next(guesses) for _ in tips.nodes]
            for tips, row in zip(asked, rows, strict=True)
        ]

    def take_work(self) -> tuple[int, int]:
        work, self._work = self._work, (0, 0)
        return work

    def forget(self, request_id: str) -> None:
        row = self._rows.pop(request_id, None)
        if row is not None:
            self._free.append(row.number)

    def _claim(self, asked: Sequence[Tips]) -> list[_Row | None]:
        """A row for each, as far as there are any; who was drafted for longest ago loses his."""
        names = {tips.ask.request_id for tips in asked}
        claimed: list[_Row | None] = []
        for tips in asked:
            name = tips.ask.request_id
            row = self._rows.pop(name, None)
            if row is None and not self._free:
                oldest = next((each for each in self._rows if each not in names), None)
                if oldest is not None:
                    self.forget(oldest)
            if row is None and self._free:
                row = _Row(self._free.pop())
            if row is not None:
                self._rows[name] = row
                self._fit(row, tips)
            claimed.append(row)
        return claimed

    def _fit(self, row: _Row, tips: Tips) -> None:
        """Begin a row anew where the known tokens and the tree would not fit."""
        known, nodes = len(tips.ask.tokens), len(_paths(tips.tree, tips.nodes))
        if known - row.start + nodes > self.context:
            row.start = max(0, known - min(self.context // 2, self.context - nodes))
            row.length = 0

    def _catch_up(self, served: Sequence[tuple[Tips, _Row]]) -> None:
        """Compute all but the last tokens of those that have many new ones."""
        made = _Pass()
        for tips, row in served:
            tokens = tips.ask.tokens
            last = len(tokens) - row.start - 1
            if last - row.length >= _FEW:
                self._add(made, row, tokens[row.start + row.length : -1], last)
                made.logits.append(len(made.tokens) - 1)
                row.length = last
        if made.tokens:
            self._run(made)

    def _add(self, made: _Pass, row: _Row, tokens: Sequence[int], context: int) -> None:
        """New tokens of a row in their order, up to `context`; its first is at `row.length`."""
        first = context - len(tokens)
        made.tokens += tokens
        made.positions += range(first, context)
        made.slots += range(row.number * self.context + first, row.number * self.context + context)
        made.query_lens.append(len(tokens))
        made.context_lens.append(context)
        made.rows.append([row.number])

    def _add_tree(self, made: _Pass, tips: Tips, row: _Row) -> None:
        """The known tokens that are new, the last one in any case, and the paths to the tips."""
        tokens, tree = tips.ask.tokens, tips.tree
        known = len(tokens) - row.start
        fresh = tokens[row.start + min(row.length, known - 1) :]
        nodes = _paths(tree, tips.nodes)
        places = {node: len(fresh) + place for place, node in enumerate(nodes)}
        first = len(made.tokens)
        self._add(made, row, [*fresh, *(tree.tokens[node] for node in nodes)], known + len(nodes))
        for node, place in places.items():
            made.positions[first + place] = known - 1 + tree.depths[node]
        size = len(fresh) + len(nodes)
        if size > 1:
            made.trees[len(made.rows) - 1] = _visibility(tree, len(fresh), nodes)
        ends = [len(fresh) - 1 if tip == ROOT else places[tip] for tip in tips.nodes]
        made.logits += [first + end for end in ends]
        row.length = known

    def _run(self, made: _Pass) -> Tensor:
        """One pass: float32 logits [wanted, outputs]."""
        device = self._decoder.device
        passes, tokens = self._work
        self._work = passes + 1, tokens + len(made.tokens)
        batch = BatchTensors(
            token_ids=torch.tensor(made.tokens, device=device),
            positions=torch.tensor(made.positions, device=device),
            slot_mapping=torch.tensor(made.slots, device=device),
            query_lens=made.query_lens,
            context_lens=made.context_lens,
            block_tables=torch.tensor(made.rows, device=device),
            logits_indices=torch.tensor(made.logits, device=device),
            trees=made.trees,
        )
        return self._decoder.forward(batch, self._kv)

    def _likeliest(self, logits: Tensor, width: int) -> list[list[Guess]]:
        best = torch.softmax(logits, dim=-1).topk(min(width, logits.shape[-1]))
        ids = best.indices if self._outputs is None else self._outputs[best.indices]
        pairs = zip(ids.tolist(), best.values.tolist(), strict=True)
        return [list(zip(tokens, chances, strict=True)) for tokens, chances in pairs]


def _paths(tree: TokenTree, tips: Sequence[int]) -> list[int]:
    """The nodes on the ways to the tips, parents before children."""
    nodes: set[int] = set()
    for tip in tips:
        node = tip
        while node != ROOT and node not in nodes:
            nodes.add(node)
            node = tree.parents[node]
    return sorted(nodes)


def _visibility(tree: TokenTree, num_known: int, nodes: Sequence[int]) -> Tensor:
    """Who sees whom, bool [new, new]: known tokens those before, nodes these and their path."""
    size = num_known + len(nodes)
    sees = torch.ones(size, size, dtype=torch.bool).tril()
    # The tree's root is the last known token.
    places = [0, *(1 + node for node in nodes)]
    sees[num_known - 1 :, num_known - 1 :] = torch.tensor(tree.visibility())[places][:, places]
    return sees


#: Requests, tokens before the last, and repeats with which a pass is timed.
_PROBES, _PROBE_TOKENS, _REPEATS = 8, 64, 9


def measure(
    model: DraftModel, clock: Clock, between: Callable[[], object] = lambda: None
) -> tuple[float, float]:
    """Seconds of a pass, and of each further token in it; call it before anything is drafted.

    `between` is done before each draft of two passes, as a target's step is: it leaves the caches
    cold for the first of them.
    """
    few, many = 1, min(_PROBES, model.num_rows)
    asks = [Ask(f"probe-{n}", [n] * _PROBE_TOKENS, Spec(), 0) for n in range(many)]
    tips = [Tips(ask, TokenTree(), (ROOT,)) for ask in asks]
    times = [_time(model, tips[:count], clock, between) for count in (few, many)]
    for ask in asks:
        model.forget(ask.request_id)
    model.take_work()
    per_token = max(0.0, times[1] - times[0]) / max(1, many - few)
    return max(0.0, times[0] - per_token), per_token


def _time(
    model: DraftModel, tips: Sequence[Tips], clock: Clock, between: Callable[[], object]
) -> float:
    model.follow(tips, 1)
    times = []
    for _ in range(_REPEATS):
        between()
        started = clock.now()
        model.follow(tips, 1)
        model.follow(tips, 1)
        times.append((clock.now() - started) / 2)
    return median(times)
