"""Records as JSON Lines, written as they come: one request per line, seconds, gzip by the name."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any

from giusto.core.slo import Deadline, Program, Streaming, kind
from giusto.metrics.records import Record

#: Decimals of a time: microseconds.
DIGITS = 6


class RecordFile(AbstractContextManager["RecordFile"]):
    """Opens a file that takes records; close it, or leave its `with`, to have it complete."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".gz":
            # Without a date, so that equal runs give equal bytes.
            packed = gzip.GzipFile(path, "wb", compresslevel=1, mtime=0)
            self._file: IO[str] = TextIOWrapper(packed, encoding="utf-8")
        else:
            self._file = path.open("w", encoding="utf-8")

    def write(self, records: Iterable[Record]) -> None:
        for record in records:
            self._file.write(json.dumps(to_json(record)) + "\n")

    def __exit__(self, *_: object) -> None:
        self._file.close()


def to_json(record: Record) -> dict[str, Any]:
    """One record; what it does not have is left out."""
    row: dict[str, Any] = {
        "id": record.id,
        "group": record.group if record.group != record.id else None,
        "class": record.service_class,
        "slo": _slo(record),
        "tenant": record.tenant or None,
        "weight": record.weight if record.weight != 1.0 else None,
        "arrival_s": _seconds(record.arrival),
        "admitted_s": _seconds(record.admitted),
        "closed_s": _seconds(record.closed),
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens or None,
        "preemptions": record.preemptions or None,
        "token_times_s": [_seconds(moment) for moment in record.token_times],
        "finish": record.finish,
        "refused": record.refused,
        "demoted": record.demoted,
        "error": record.error,
        "program": None
        if record.program is None
        else {
            "id": record.program.id,
            "call": record.program.call,
            "opened_s": _seconds(record.program.opened),
            "deadline_s": record.program.deadline,
        },
    }
    return {key: value for key, value in row.items() if value is not None}


def _slo(record: Record) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": kind(record.slo)}
    match record.slo:
        case Streaming(ttft, tpot):
            row |= {"ttft_s": ttft, "tpot_s": tpot}
        case Deadline(deadline) | Program(deadline):
            row["deadline_s"] = deadline
        case _:
            pass
    return row


def _seconds(moment: float | None) -> float | None:
    return None if moment is None else round(moment, DIGITS)
