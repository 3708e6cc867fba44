"""Readers of published traces: a file on disk in, entries out. Nothing is downloaded.

A source is named as `reader:path` or `reader:path#part`. Each reader's docstring states its columns
with their units, where the data come from and under which licence. Plain and gzip'ed files are read
alike.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from giusto.core.errors import ConfigError
from giusto.workload import records
from giusto.workload.readers.adaserve import adaserve
from giusto.workload.readers.claude_code import claude_code
from giusto.workload.readers.lengths import sharegpt
from giusto.workload.readers.lmcache import magentic, mini_swe
from giusto.workload.readers.mooncake import mooncake
from giusto.workload.readers.otel import otel
from giusto.workload.readers.servegen import servegen
from giusto.workload.readers.tau import tau
from giusto.workload.readers.timed import azure, burstgpt, lmsys
from giusto.workload.readers.trace import Options, Trace, label
from giusto.workload.records import Entry

__all__ = ["READERS", "Options", "Reader", "Trace", "read"]


DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class Reader:
    """How to read one form: from path, part (what stands after '#', or nothing) and options.

    `is_timed` says whether the form has arrivals; a file of it in which all are 0 has none.
    """

    entries: Callable[[Path, str, Options], list[Entry]]
    is_timed: bool = True


def read(spec: str, options: Options = DEFAULTS) -> Trace:
    """Read `reader:path[#part]`; ConfigError names file, line and column of a mistake."""
    name, colon, rest = spec.partition(":")
    reader = READERS.get(name)
    if not colon or reader is None:
        near = difflib.get_close_matches(name, READERS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"{spec!r} names no reader of {', '.join(READERS)}; write reader:path{hint}"
        )
    location, _, part = rest.partition("#")
    path = Path(location)
    entries = reader.entries(path, part, options)
    if not entries:
        raise ConfigError(f"{path} has no requests")
    return Trace(
        f"{name}:{label(path)}{'#' if part else ''}{part}",
        _first(entries, options.limit),
        reader.is_timed and any(entry.arrival for entry in entries),
    )


def _first(entries: list[Entry], limit: int | None) -> list[Entry]:
    """Keep the first so many requests, a program counting as one."""
    if limit is None:
        return entries
    units = [entry.step.program if entry.step else entry.id for entry in entries]
    kept = set(list(dict.fromkeys(units))[:limit])
    return [entry for entry, unit in zip(entries, units, strict=True) if unit in kept]


def _whole(
    entries: Callable[[Path, Options], list[Entry]],
) -> Callable[[Path, str, Options], list[Entry]]:
    """Refuse a part for a form that has none."""

    @functools.wraps(entries)
    def read(path: Path, part: str, options: Options) -> list[Entry]:
        if part:
            raise ConfigError(f"{path} has no parts: leave out '#{part}'")
        return entries(path, options)

    return read


def jsonl(path: Path, options: Options) -> list[Entry]:
    """Read the project's own form, JSON Lines as `records.write` writes them."""
    return records.read(path)


READERS = {
    "adaserve": Reader(adaserve),
    "azure": Reader(_whole(azure)),
    "burstgpt": Reader(_whole(burstgpt)),
    "claude-code": Reader(_whole(claude_code), is_timed=False),
    "jsonl": Reader(_whole(jsonl)),
    "lmsys": Reader(_whole(lmsys)),
    "magentic": Reader(_whole(magentic), is_timed=False),
    "mini-swe": Reader(_whole(mini_swe), is_timed=False),
    "mooncake": Reader(_whole(mooncake)),
    "otel": Reader(_whole(otel), is_timed=False),
    "servegen": Reader(servegen),
    "sharegpt": Reader(_whole(sharegpt), is_timed=False),
    "tau": Reader(_whole(tau), is_timed=False),
}
