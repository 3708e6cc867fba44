"""Traces of arrivals and lengths, one request a row of CSV. The first request arrives at 0."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from giusto.workload.readers.tables import Cells, Table
from giusto.workload.readers.trace import Options, capped, label
from giusto.workload.records import Entry

#: BurstGPT's kinds of log as classes.
LOG_TYPES = {"Conversation log": "chat", "API log": "api"}


def azure(path: Path, options: Options) -> list[Entry]:
    """Read an Azure LLM inference trace, as published or with times in seconds.

    Columns: `TIMESTAMP` (date and time), `ContextTokens`, `GeneratedTokens`; or `t_s` (s),
    `context_tokens`, `generated_tokens`.

    Source: Azure/AzurePublicDataset, 2023 code and conversation, CC-BY-4.0 (Patel et al.,
    Splitwise, ISCA 2024).
    """
    table = Table(path)
    if "TIMESTAMP" in table.columns:
        columns = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
    else:
        columns = ("t_s", "context_tokens", "generated_tokens")
    clock, prompt, answer = columns
    entries = [
        Entry(
            f"{label(path)}-{index}",
            _date(row, clock) if clock == "TIMESTAMP" else row.amount(clock),
            prompt_tokens=row.tokens(prompt),
            output_tokens=row.tokens(answer),
        )
        for index, row in enumerate(table.rows(*columns))
    ]
    return _from_zero(entries, options)


def burstgpt(path: Path, options: Options) -> list[Entry]:
    """Read a trace in BurstGPT's form; class `chat` or `api` by the kind of log.

    Columns: `Timestamp` (s), `Request tokens`, `Response tokens`, `Log Type`; others are ignored.
    Requests without an answer had failed at the source and are left out.

    Source: HPMLL/BurstGPT, CC-BY-4.0 (arXiv 2401.17644).
    """
    entries = []
    rows = Table(path).rows("Timestamp", "Request tokens", "Response tokens", "Log Type")
    for index, row in enumerate(rows):
        kind = row.word("Log Type")
        if kind not in LOG_TYPES:
            raise row.error("Log Type", f"expected one of {', '.join(LOG_TYPES)}, got {kind!r}")
        entry = Entry(
            f"{label(path)}-{index}",
            row.amount("Timestamp"),
            LOG_TYPES[kind],
            prompt_tokens=row.tokens("Request tokens"),
            output_tokens=row.count("Response tokens"),
        )
        if entry.output_tokens:
            entries.append(entry)
    return _from_zero(entries, options)


def lmsys(path: Path, options: Options) -> list[Entry]:
    """Read arrivals by client, each client a tenant.

    Columns: `t_s` (s), `client`, `prompt_tokens`, `output_tokens`. A client is one of the models of
    Chatbot Arena, from whose log 1,500 conversations were drawn and rescaled to 600 s.

    Source: Ying1123/VTC-artifact, Apache-2.0 (Sheng et al., VTC, OSDI 2024).
    """
    rows = Table(path).rows("t_s", "client", "prompt_tokens", "output_tokens")
    entries = [
        Entry(
            f"{label(path)}-{index}",
            row.amount("t_s"),
            prompt_tokens=row.tokens("prompt_tokens"),
            output_tokens=row.tokens("output_tokens"),
            tenant=f"client-{row.word('client')}",
        )
        for index, row in enumerate(rows)
    ]
    return _from_zero(entries, options)


def _from_zero(entries: list[Entry], options: Options) -> list[Entry]:
    start = min((entry.arrival for entry in entries), default=0.0)
    return capped((replace(entry, arrival=entry.arrival - start) for entry in entries), options)


def _date(row: Cells, key: str) -> float:
    """A date as seconds since 1970; without a zone it is taken as UTC."""
    date = row.word(key)
    try:
        moment = datetime.fromisoformat(date)
    except ValueError:
        raise row.error(key, f"expected a date and time, got {date!r}") from None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
