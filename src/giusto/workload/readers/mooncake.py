"""Mooncake: arrivals and lengths with the ids of the prompt's KV blocks."""

from __future__ import annotations

from pathlib import Path

from giusto.workload.readers import pieces
from giusto.workload.readers.tables import json_rows
from giusto.workload.readers.trace import Options, capped, label
from giusto.workload.records import Entry

BLOCK = 512


def mooncake(path: Path, options: Options) -> list[Entry]:
    """Read a Mooncake trace; equal block ids within the file become equal pieces.

    Keys: `timestamp` (ms), `input_length`, `output_length` (tokens), `hash_ids` (one a block of 512
    prompt tokens, which stands for all that comes before it too). The last block is seldom full:
    then its tokens are the prompt's own.

    Source: kvcache-ai/Mooncake, FAST25-release, Apache-2.0 (Qin et al., FAST 2025).
    """
    name = label(path)
    entries = []
    for index, row in enumerate(json_rows(path)):
        tokens = row.tokens("input_length")
        blocks = pieces.runs(row.ids("hash_ids"))
        entries.append(
            Entry(
                f"{name}-{index}",
                row.amount("timestamp") / 1000,
                prompt_tokens=tokens,
                pieces=pieces.from_blocks(f"{name}-blocks", blocks, BLOCK, tokens),
                output_tokens=row.tokens("output_length"),
            )
        )
    return capped(entries, options)
