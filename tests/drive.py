"""Drive a Decoder without scheduler or runner: sequences, shuffled blocks, ragged steps."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from giusto.engine.model import Decoder
from giusto.engine.tensors import BatchTensors, KVCache


@dataclass
class Sequence:
    """Known tokens, how many of them are in the cache, and where."""

    tokens: list[int]
    computed: int = 0
    blocks: list[int] = field(default_factory=list)


class Driver:
    """Hands out cache blocks in random order and runs steps."""

    def __init__(
        self, decoder: Decoder, num_blocks: int = 128, block_size: int = 16, seed: int = 0
    ) -> None:
        self.decoder = decoder
        self.kv = KVCache(decoder.config, num_blocks, block_size, decoder.dtype, decoder.device)
        # What an evicted request left behind must never be read.
        for layer in self.kv.layers:
            layer.keys.fill_(float("nan"))
            layer.values.fill_(float("nan"))
        self._free = random.Random(seed).sample(range(num_blocks), num_blocks)

    def fork(self, source: Sequence, tokens: list[int]) -> Sequence:
        """Start a sequence on the full blocks of `source` that hold a prefix of `tokens`."""
        size, shared = self.kv.block_size, 0
        while (shared + 1) * size <= min(source.computed, len(tokens) - 1) and source.tokens[
            : (shared + 1) * size
        ] == tokens[: (shared + 1) * size]:
            shared += 1
        return Sequence(list(tokens), shared * size, source.blocks[:shared])

    def step(self, work: list[tuple[Sequence, int]], wanted: list[int] | None = None) -> Tensor:
        """Compute the next `count` tokens of each sequence; logits [tokens of all, vocab].

        `wanted` picks rows of the tokens of all; None is every row.
        """
        size = self.kv.block_size
        ids, positions, slots, queries, contexts = [], [], [], [], []
        for sequence, count in work:
            end = sequence.computed + count
            while len(sequence.blocks) * size < end:
                sequence.blocks.append(self._free.pop())
            span = range(sequence.computed, end)
            ids += sequence.tokens[sequence.computed : end]
            positions += span
            slots += [sequence.blocks[p // size] * size + p % size for p in span]
            queries.append(count)
            contexts.append(end)
            sequence.computed = end
        widest = max(len(sequence.blocks) for sequence, _ in work)
        device = self.decoder.device
        batch = BatchTensors(
            token_ids=torch.tensor(ids, device=device),
            positions=torch.tensor(positions, device=device),
            slot_mapping=torch.tensor(slots, device=device),
            query_lens=queries,
            context_lens=contexts,
            block_tables=torch.tensor(
                [s.blocks + [0] * (widest - len(s.blocks)) for s, _ in work], device=device
            ),
            logits_indices=torch.tensor(
                range(len(ids)) if wanted is None else wanted, dtype=torch.int64, device=device
            ),
        )
        return self.decoder.forward(batch, self.kv)

    def greedy(self, prompt: list[int], count: int, stop: tuple[int, ...] = ()) -> list[int]:
        """Generate up to `count` tokens after a prompt, most likely token first."""
        sequence = Sequence(list(prompt))
        for _ in range(count):
            logits = self.step([(sequence, len(sequence.tokens) - sequence.computed)])
            token = int(logits[-1].argmax())
            if token in stop:
                break
            sequence.tokens.append(token)
        return sequence.tokens[len(prompt) :]
