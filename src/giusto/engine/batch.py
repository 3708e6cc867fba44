"""Turn a plan into the tensors of one step: the only index arithmetic of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from giusto.core.latency import BatchShape
from giusto.core.plan import Plan
from giusto.core.request import Request
from giusto.engine.tensors import BatchTensors


@dataclass(frozen=True, slots=True)
class Batch:
    """A step's tensors and shape, and the requests that get a token: one per row of logits."""

    tensors: BatchTensors
    shape: BatchShape
    sampling: tuple[Request, ...]


def build(
    plan: Plan, requests: Mapping[str, Request], block_size: int, device: torch.device | str
) -> Batch:
    """Lay the granted tokens side by side.

    Per request, with `start` tokens computed and `n` granted:

        token_ids  | computed (start) | granted (n) | known later |
        positions                      start .. start + n - 1
        slots                          blocks[position // size] * size + position % size

    A request whose grant reaches its last known token yields a row of logits.
    """
    rows = _Rows()
    for grant in plan.grants:
        request = requests[grant.request_id]
        rows.add(request, grant.num_tokens, block_size)
    widest = max(len(table) for table in rows.tables)
    tables = [table + [0] * (widest - len(table)) for table in rows.tables]
    tensors = BatchTensors(
        token_ids=torch.tensor(rows.token_ids, device=device),
        positions=torch.tensor(rows.positions, device=device),
        slot_mapping=torch.tensor(rows.slots, device=device),
        query_lens=rows.query_lens,
        context_lens=rows.context_lens,
        block_tables=torch.tensor(tables, device=device),
        logits_indices=torch.tensor(rows.logits, dtype=torch.int64, device=device),
    )
    return Batch(tensors, rows.shape(), tuple(rows.sampling))


class _Rows:
    """The columns of a batch while it is put together, as plain lists."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self.slots: list[int] = []
        self.query_lens: list[int] = []
        self.context_lens: list[int] = []
        self.tables: list[list[int]] = []
        self.logits: list[int] = []
        self.sampling: list[Request] = []

    def add(self, request: Request, num_tokens: int, size: int) -> None:
        start = request.num_computed_tokens
        end = start + num_tokens
        blocks = request.blocks
        self.token_ids += request.token_ids[start:end]
        self.positions += range(start, end)
        self.slots += [blocks[p // size] * size + p % size for p in range(start, end)]
        self.query_lens.append(num_tokens)
        self.context_lens.append(end)
        self.tables.append(blocks[: -(-end // size)])
        if end == request.num_tokens:
            self.logits.append(len(self.token_ids) - 1)
            self.sampling.append(request)

    def shape(self) -> BatchShape:
        """Single tokens count as decodes, longer runs as prompt chunks."""
        pairs = list(zip(self.query_lens, self.context_lens, strict=True))
        chunks = [(n, end) for n, end in pairs if n > 1]
        singles = [end for n, end in pairs if n == 1]
        return BatchShape(
            prefill_tokens=sum(n for n, _ in chunks),
            prefill_kv=sum(n * (end - n) for n, end in chunks),
            decode_seqs=len(singles),
            kv_tokens=sum(singles),
        )
