"""AdaServe's mix of code completion, chat and summarisation, each with its own TPOT limit."""

from __future__ import annotations

from pathlib import Path

from giusto.core.errors import ConfigError
from giusto.core.slo import Streaming
from giusto.workload.readers.tables import Cells, Table
from giusto.workload.readers.trace import Options
from giusto.workload.records import Entry

#: Absolute TPOT limits, in milliseconds, and the class that the paper gives them to.
ABSOLUTE = {50.0: "chat", 150.0: "summarise"}


def adaserve(path: Path, part: str, options: Options) -> list[Entry]:
    """Read one of the file's traces: `part` is its name, `fig8-9_rps3.2_ol256` say.

    Columns: `trace`, `t_ms` (ms), `input_tokens`, `output_tokens` (the cap on the answer, 256 or
    128), `slo_ratio`. How long the answers became is not recorded: `output_tokens` is None and the
    cap is what policies see. A ratio above 0 is a multiple of `options.slo_unit` (the paper's
    scripts take 30 ms for Llama-3.1-70B and 28 ms for Qwen2.5-32B) and makes the class `code`; one
    below 0 is milliseconds, -50 for `chat` and -150 for `summarise`.

    Source: AdaServe (arXiv 2501.12162), sections 6.1 and 6.2, and its repository
    zikun-li/AdaServe-Artifact-Evaluation, Apache-2.0.
    """
    entries: list[Entry] = []
    names: dict[str, None] = {}
    table = Table(path)
    for row in table.rows("trace", "t_ms", "input_tokens", "output_tokens", "slo_ratio"):
        name = row.word("trace")
        names[name] = None
        if name == part:
            entries.append(_entry(f"{part}-{len(entries)}", row, options))
    if not entries:
        asked = f"has no trace {part!r}" if part else "holds several traces"
        raise ConfigError(f"{path.name} {asked}; name one after '#': {', '.join(names)}")
    return entries


def _entry(name: str, row: Cells, options: Options) -> Entry:
    ratio = row.amount("slo_ratio", minimum=float("-inf"))
    if ratio > 0:
        if options.slo_unit is None:
            raise row.error(
                "slo_ratio", "is a multiple of the model's decode latency; give it as slo_unit"
            )
        service_class, tpot = "code", ratio * options.slo_unit
    elif -ratio in ABSOLUTE:
        service_class, tpot = ABSOLUTE[-ratio], -ratio / 1000
    else:
        known = ", ".join(f"{-ms:g} ({name})" for ms, name in ABSOLUTE.items())
        raise row.error("slo_ratio", f"expected a ratio above 0 or one of {known}, got {ratio:g}")
    return Entry(
        name,
        row.amount("t_ms") / 1000,
        service_class,
        prompt_tokens=row.tokens("input_tokens"),
        max_tokens=row.count("output_tokens", minimum=1),
        slo=Streaming(None, tpot),
    )
