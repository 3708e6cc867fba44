"""ServeGen: clients with rates, gap laws and length histograms, from which a window is drawn.

Rates hold for 600 s at a time, histograms for six hours. The draws of a client in one of its 600 s
depend on the seed, the client and that time alone, so windows that overlap agree where they do.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from giusto.core.errors import ConfigError
from giusto.workload.readers.tables import Cells, Record, Table, json_rows
from giusto.workload.readers.trace import Options, cap, label
from giusto.workload.records import Entry

RATE_SPAN = 600
LENGTH_SPAN = 21_600
RATES = "_rates.csv"
LENGTHS = "_lengths.jsonl"
#: Below it Weibull gaps leave the range of numbers.
LEAST_SHAPE = 0.01


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A length law by evenly spaced quantiles, linear between them.

    The last interval is bent so that the mean is the recorded one, for its maximum may lie far
    beyond all else: in it u, even in 0 to 1, gives low + (high - low) u^bend.
    """

    knots: tuple[float, ...]
    bend: float

    @classmethod
    def read(cls, row: Record, key: str) -> Quantiles:
        knots = row.amounts(key)
        if len(knots) < 3 or knots[0] < 0 or knots != sorted(knots):
            raise row.error(key, "expected at least 3 rising numbers")
        *body, low, high = knots
        middles = sum((a + b) / 2 for a, b in zip(body, [*body[1:], low], strict=True))
        above = row.amount(f"{key}_mean") * (len(knots) - 1) - middles - low
        bend = (high - low) / above - 1 if above > 0 else float("inf")
        return cls(tuple(knots), max(0.0, bend))

    def draw(self, rng: random.Random) -> int:
        index, within = divmod(rng.random() * (len(self.knots) - 1), 1)
        low, high = self.knots[int(index) : int(index) + 2]
        if int(index) == len(self.knots) - 2:
            within **= self.bend
        return max(1, round(low + (high - low) * within))


@dataclass(frozen=True, slots=True)
class Lengths:
    """What a client asks and is answered, in tokens; the two are drawn apart."""

    prompt: Quantiles
    answer: Quantiles


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`count` requests of a client in the 600 s from `start`.

    Gaps have the recorded family and shape; together they are stretched to fill the 600 s, so that
    the recorded rate is met exactly. The recorded scale, whose mean need not be 1 / rate, is not
    used.
    """

    client: int
    start: int
    count: int
    family: str | None
    shape: float

    @classmethod
    def read(cls, row: Cells) -> Arrivals:
        family = row.text("iat_family")
        if family not in ("Gamma", "Weibull", None):
            raise row.error("iat_family", f"expected Gamma, Weibull or nothing, got {family!r}")
        return cls(
            row.count("client"),
            row.count("t0_s"),
            round(row.amount("rate_rps") * RATE_SPAN),
            family,
            row.amount("shape", minimum=LEAST_SHAPE) if family else 1.0,
        )

    def times(self, rng: random.Random) -> list[float]:
        """Seconds from the trace's start, rising."""
        if self.family == "Weibull":
            gaps = [rng.weibullvariate(1.0, self.shape) for _ in range(self.count + 1)]
        else:
            gaps = [rng.gammavariate(self.shape, 1.0) for _ in range(self.count + 1)]
        stretch = RATE_SPAN / (sum(gaps) or 1.0)
        return [self.start + gap * stretch for gap in accumulate(gaps[:-1])]


def servegen(path: Path, part: str, options: Options) -> list[Entry]:
    """Draw the requests of a window: `part` is its bounds in seconds, `86400-90000` say.

    `path` is a rates file, `…_rates.csv`: `t0_s` (start of 600 s), `client`, `rate_rps`,
    `iat_family`, `shape`. Beside it lies `…_lengths.jsonl`: `client`, `t0_s` (start of six hours),
    `input_tokens` and `output_tokens` as evenly spaced quantiles, and their means. Clients are
    tenants. A client without lengths at a time is left out at that time, so the load is that of the
    others: the busiest clients' histograms are not always public.

    Source: alibaba/ServeGen, Apache-2.0 (arXiv 2505.09999). Differs: gaps are stretched to the
    window's count, and lengths are drawn from quantiles, prompt and answer apart.
    """
    start, end = _window(path, part)
    lengths = _lengths(path)
    longest = max((law.answer.knots[-1] for law in lengths.values()), default=1.0)
    entries: list[Entry] = []
    for arrivals in _arrivals(path, start, end):
        for time, client, prompt, answer in _requests(arrivals, lengths, options.seed):
            if len(entries) == options.limit:
                return entries
            if start <= time < end:
                entries.append(
                    Entry(
                        f"{label(path)}-{len(entries)}",
                        time - start,
                        prompt_tokens=prompt,
                        max_tokens=cap(round(longest), options),
                        output_tokens=answer,
                        tenant=f"client-{client}",
                    )
                )
    return entries


def _window(path: Path, part: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)-(\d+)", part)
    start, end = map(int, match.groups()) if match else (0, 0)
    if start >= end:
        raise ConfigError(
            f"{path.name} needs a window in seconds after '#', 0-3600 say, got {part!r}"
        )
    return start, end


def _lengths(path: Path) -> dict[tuple[int, int], Lengths]:
    """Length laws by client and start of their six hours, from the file beside the rates."""
    stem, ending, _ = path.name.rpartition(RATES)
    if not ending:
        raise ConfigError(f"{path}: expected rates, in a file named …{RATES} or …{RATES}.gz")
    beside = path.with_name(f"{stem}{LENGTHS}.gz")
    rows = json_rows(beside if beside.exists() else path.with_name(f"{stem}{LENGTHS}"))
    return {
        (row.count("client"), row.count("t0_s")): Lengths(
            Quantiles.read(row, "input_tokens"), Quantiles.read(row, "output_tokens")
        )
        for row in rows
    }


def _arrivals(path: Path, start: int, end: int) -> list[list[Arrivals]]:
    """The rates that hold between start and end, by their 600 s, in order."""
    spans: dict[int, list[Arrivals]] = {}
    last = 0
    for row in Table(path).rows("t0_s", "client", "rate_rps", "iat_family", "shape"):
        since = row.count("t0_s")
        last = max(last, since + RATE_SPAN)
        if start - RATE_SPAN < since < end:
            spans.setdefault(since, []).append(Arrivals.read(row))
    if not spans:
        raise ConfigError(f"{path.name} has nothing from {start} to {end} s; it ends at {last} s")
    return [spans[since] for since in sorted(spans)]


def _requests(
    arrivals: list[Arrivals], lengths: dict[tuple[int, int], Lengths], seed: int
) -> Iterator[tuple[float, int, int, int]]:
    """Yield time, client and both lengths of the requests of the same 600 s, by time."""
    times: list[tuple[float, int]] = []
    drawn: dict[int, tuple[Lengths, random.Random]] = {}
    for span in arrivals:
        law = lengths.get((span.client, span.start // LENGTH_SPAN * LENGTH_SPAN))
        if law is not None:
            rng = random.Random(f"{seed} {span.client} {span.start}")
            times += [(time, span.client) for time in span.times(rng)]
            drawn[span.client] = law, rng
    for time, client in sorted(times):
        law, rng = drawn[client]
        yield time, client, law.prompt.draw(rng), law.answer.draw(rng)
