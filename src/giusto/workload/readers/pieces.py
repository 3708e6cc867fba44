"""Which tokens prompts share, from what the sources tell: block ids, shared starts, equal texts."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

from giusto.workload.records import Piece


def runs(ids: Iterable[int]) -> list[tuple[int, int]]:
    """Join consecutive ids to (first, count)."""
    joined: list[tuple[int, int]] = []
    for number in ids:
        if joined and number == sum(joined[-1]):
            joined[-1] = (joined[-1][0], joined[-1][1] + 1)
        else:
            joined.append((number, 1))
    return joined


def from_blocks(
    source: str, blocks: Iterable[tuple[int, int]], size: int, tokens: int
) -> tuple[Piece, ...]:
    """Name a prompt of `tokens` by its blocks of `size`, given as (first id, count).

    Block i of a source is its tokens from i x size. What does not fill a block is left out: it is
    the prompt's own.
    """
    left = tokens // size
    pieces = []
    for first, count in blocks:
        used = min(count, left)
        if used:
            pieces.append(Piece(source, first * size, used * size))
        left -= used
    return tuple(pieces)


def cut(pieces: Iterable[Piece], tokens: int) -> tuple[Piece, ...]:
    """The first `tokens` tokens."""
    kept = []
    for piece in pieces:
        if tokens <= 0:
            break
        kept.append(Piece(piece.source, piece.start, min(piece.tokens, tokens)))
        tokens -= piece.tokens
    return tuple(kept)


def of_text(text: str, tokens: int) -> Piece:
    """Name a text by its content, so that equal texts are one wherever they stand."""
    return Piece(f"text-{blake2b(text.encode(), digest_size=8).hexdigest()}", 0, tokens)
