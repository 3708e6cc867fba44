"""What a reader answers with, what it may be told, and the cap that policies see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from giusto.core.errors import ConfigError
from giusto.workload.records import Entry


@dataclass(frozen=True, slots=True)
class Trace:
    """Entries in file order.

    Without `is_timed` the source has no arrivals: entries and first calls of programs are at 0 and
    whoever replays them draws when they come. Should a program open with several calls at once,
    theirs are seconds after its first.
    """

    name: str
    entries: list[Entry]
    is_timed: bool


@dataclass(frozen=True, slots=True)
class Options:
    """What a file cannot say.

    `slo_unit` is the model's own decode latency in seconds, which AdaServe's ratios multiply;
    `limit` keeps the first so many requests, a program counting as one; `max_tokens` is the least
    cap of a class.
    """

    seed: int = 0
    slo_unit: float | None = None
    limit: int | None = None
    max_tokens: int = 2048

    def __post_init__(self) -> None:
        if self.slo_unit is not None and not self.slo_unit > 0:
            raise ConfigError(f"slo_unit must be above 0 seconds, got {self.slo_unit}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1, got {self.limit}")
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")


def cap(longest: int, options: Options) -> int:
    """The power of two that holds the longest answer of a class, and `options.max_tokens`."""
    return max(options.max_tokens, 1 << (longest - 1).bit_length())


def capped(entries: Iterable[Entry], options: Options) -> list[Entry]:
    """Give each class one cap, so that no entry's own length shows in it."""
    entries = list(entries)
    longest: dict[str, int] = {}
    for entry in entries:
        name = entry.service_class
        longest[name] = max(longest.get(name, 1), entry.output_tokens or 1)
    caps = {name: cap(tokens, options) for name, tokens in longest.items()}
    return [replace(entry, max_tokens=caps[entry.service_class]) for entry in entries]


def label(path: Path) -> str:
    """The file's name without its endings, to name entries and texts by."""
    return Path(path.name.removesuffix(".gz")).stem
