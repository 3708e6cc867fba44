"""Which steps are timed for a profile: decodes, prompts, later chunks, steps that mix them, and
decodes that verify candidates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from giusto.core.latency import BatchShape

BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
CONTEXTS = (64, 256, 768)
CHUNKS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
BEFORE = (0, 256, 1024)
#: Decodes and chunks that share a step, and several prompts in one.
MIXED = tuple(product((2, 8, 24), (16, 64, 256)))
PROMPTS = ((2, 32), (4, 32), (2, 128))
#: Decodes, and candidates that each of them verifies.
VERIFIED = tuple(product((1, 4, 16, 32), (2, 6)))


@dataclass(frozen=True, slots=True)
class Room:
    """What bounds a step, in tokens, sequences and blocks; `length` is one sequence's most."""

    tokens: int
    seqs: int
    length: int
    num_blocks: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Case:
    """One step: `decodes` sequences, and `prompts` chunks of `chunk` tokens (two at least).

    context: tokens that the decoding sequences hold on average; half to one and a half times as
    many each, since equal contexts are the cheapest and the rarest.
    before: tokens of each prompt that earlier chunks computed.
    nodes: candidates that each decoding sequence verifies.
    """

    decodes: int = 0
    context: int = 0
    prompts: int = 0
    chunk: int = 0
    before: int = 0
    nodes: int = 0

    @property
    def kind(self) -> str:
        """decode, verify, prefill, chunk (of a prompt that was begun) or mixed."""
        if self.nodes:
            return "verify"
        if self.decodes:
            return "mixed" if self.prompts else "decode"
        return "chunk" if self.before else "prefill"

    @property
    def sequences(self) -> list[tuple[int, int]]:
        """(tokens in the cache, new tokens) of each sequence."""
        spread = ((2 * i + 1) / (2 * self.decodes) + 0.5 for i in range(self.decodes))
        decodes = [(max(1, int(self.context * share)), 1) for share in spread]
        return decodes + [(self.before, self.chunk)] * self.prompts

    @property
    def shape(self) -> BatchShape:
        """As the engine counts it: a context includes the new token."""
        return BatchShape(
            prefill_tokens=self.prompts * self.chunk,
            prefill_kv=self.prompts * self.chunk * self.before,
            decode_seqs=self.decodes,
            kv_tokens=sum(held + 1 for held, new in self.sequences if new == 1),
            nodes=self.decodes * self.nodes,
        )

    def fits(self, room: Room) -> bool:
        lengths = [held + new + self.nodes for held, new in self.sequences]
        return (
            self.shape.num_tokens <= room.tokens
            and len(lengths) <= room.seqs
            and max(lengths) <= room.length
            and sum(-(-length // room.block_size) for length in lengths) <= room.num_blocks
        )


def cases(room: Room) -> list[Case]:
    """The steps that fit; at the least a decode alone."""
    return [case for case in _all() if case.fits(room)] or [Case(decodes=1, context=1)]


def _all() -> Iterator[Case]:
    for batch, context in product(BATCHES, CONTEXTS):
        yield Case(decodes=batch, context=context)
    for chunk, before in product(CHUNKS, BEFORE):
        yield Case(prompts=1, chunk=chunk, before=before)
    for prompts, chunk in PROMPTS:
        yield Case(prompts=prompts, chunk=chunk)
    for decodes, chunk in MIXED:
        yield Case(decodes=decodes, context=256, prompts=1, chunk=chunk)
    for decodes, nodes in VERIFIED:
        yield Case(decodes=decodes, context=256, nodes=nodes)
