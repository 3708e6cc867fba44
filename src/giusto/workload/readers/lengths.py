"""Lists of prompt and answer lengths without arrivals."""

from __future__ import annotations

from pathlib import Path

from giusto.workload.readers.tables import Table
from giusto.workload.readers.trace import Options, capped, label
from giusto.workload.records import Entry


def sharegpt(path: Path, options: Options) -> list[Entry]:
    """Read lengths of ShareGPT conversations, or of any list with these columns.

    Columns: `input_tokens`, `output_tokens`.

    Source: rayleizhu/vllm-ra, ShareGPT lengths, Apache-2.0; microsoft/vidur, arXiv summarisation
    lengths, MIT.
    """
    rows = Table(path).rows("input_tokens", "output_tokens")
    name = label(path)
    return capped(
        (
            Entry(
                f"{name}-{index}",
                0.0,
                prompt_tokens=row.tokens("input_tokens"),
                output_tokens=row.tokens("output_tokens"),
            )
            for index, row in enumerate(rows)
        ),
        options,
    )
