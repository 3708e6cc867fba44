"""How often length bounds hold, and how wide they are: per class, on requests not learned from yet.

    python benchmarks/predict/coverage.py --workload azure:azure2023_conv.csv.gz
    python benchmarks/predict/coverage.py --workload slo-mix --count 12000 --predictor forest
    python benchmarks/predict/coverage.py --workload mixed --count 12000 --predictor forest

A workload is a trace as `reader:path` (a bare name is looked for in GIUSTO_DATA/traces), a built-in
mix, or `mixed`, whose prompts have text. Requests arrive one after the other and so many run at
once, each a token at a time, so that short ones end first. Bounds are those of `remaining` at
arrival; the first part of the requests only teaches, the rest is judged, and teaches on, as in
service. Judged are outputs that ended by themselves. The forest is fitted after every so many
endings and answers at once, in this process: a worker of its own would answer a moment later.
"""

from __future__ import annotations

import heapq
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from giusto.core.errors import ConfigError, GiustoError
from giusto.core.events import Arrived, Estimated, Finished
from giusto.core.request import FinishReason, ProgramRef, Request, SamplingParams, Submission
from giusto.predict.base import LengthPredictor
from giusto.predict.conformal import Calibrated
from giusto.predict.estimates import ForestPredictor
from giusto.predict.features import features
from giusto.predict.forest import Forest, ForestSample
from giusto.predict.histogram import Histogram
from giusto.workload import mixed, readers
from giusto.workload.mix import MIXES, build
from giusto.workload.records import Entry

LEVELS = (0.9, 0.95)
PREDICTORS = ("histogram", "forest")


@dataclass(frozen=True, slots=True)
class Item:
    """A request, its hidden length, and the words of its prompt as numbers."""

    ask: Submission
    length: int
    words: tuple[int, ...] = ()

    @property
    def is_cut(self) -> bool:
        return self.length >= self.ask.cap


@dataclass(slots=True)
class Judged:
    """Bounds at arrival by level, and lengths, of one class."""

    bounds: dict[float, list[float]] = field(default_factory=lambda: defaultdict(list))
    lengths: list[int] = field(default_factory=list)
    num_cut: int = 0


class Online:
    """A forest that is fitted as requests end, in this process."""

    def __init__(self, fit_every: int) -> None:
        self.fit_every = fit_every
        self.forest = Forest()
        self.sample = ForestSample()
        self.num_fits, self.seconds = 0, 0.0
        self._since = 0

    def learn(self, known: Sequence[float], length: int) -> bool:
        """Whether the forest is a new one now."""
        self.sample.add(known, length)
        self._since += 1
        if self._since < (self.fit_every if self.forest.is_fitted else 100):
            return False
        began = time.process_time()
        self.forest.fit(self.sample)
        self.seconds += time.process_time() - began
        self.num_fits += 1
        self._since = 0
        return True


class Run:
    """One workload under one predictor."""

    def __init__(self, items: Sequence[Item], online: Online | None, at_once: int) -> None:
        self._items = items
        self._online = online
        self._at_once = at_once
        inner: LengthPredictor = Histogram()
        self.plain = inner if online is None else ForestPredictor(inner)
        self.calibrated = Calibrated(self.plain)
        self.known = [features(Request.of(item.ask), item.words) for item in items]
        self._answers: dict[int, tuple[float, ...]] = {}

    def play(self, num_taught: int) -> dict[str, tuple[Judged, Judged]]:
        """Bounds of the calibrated and of the plain predictor, by class."""
        judged: dict[str, tuple[Judged, Judged]] = defaultdict(lambda: (Judged(), Judged()))
        running: list[tuple[float, int]] = []
        given: dict[int, tuple[Request, list[list[float]]]] = {}
        now = 0.0
        for index, item in enumerate(self._items):
            while len(running) >= self._at_once:
                now, ended = heapq.heappop(running)
                self._end(ended, now, index, given, judged if ended >= num_taught else None)
            request = Request.of(item.ask)
            self.calibrated.observe(Arrived(request, now))
            if (answer := self._answer(index)) is not None:
                self.calibrated.observe(Estimated(request.id, answer, now))
            asked = (self.calibrated, self.plain)
            given[index] = (request, [[p.remaining(request, q) for q in LEVELS] for p in asked])
            heapq.heappush(running, (now + item.length, index))
        while running:
            now, ended = heapq.heappop(running)
            self._end(ended, now, len(self._items), given, judged if ended >= num_taught else None)
        return judged

    def _end(
        self,
        index: int,
        now: float,
        next_index: int,
        given: dict[int, tuple[Request, list[list[float]]]],
        judged: Mapping[str, tuple[Judged, Judged]] | None,
    ) -> None:
        item, (request, bounds) = self._items[index], given.pop(index)
        request.num_output_tokens = item.length
        reason = FinishReason.LENGTH if item.is_cut else FinishReason.STOP
        self.calibrated.observe(Finished(request.id, now, reason))
        if self._online and self._online.learn(self.known[index], item.length):
            self._answers.clear()
        if judged is not None:
            for each, told in zip(judged[request.service_class], bounds, strict=True):
                each.num_cut += item.is_cut
                if not item.is_cut:
                    each.lengths.append(item.length)
                    for level, bound in zip(LEVELS, told, strict=True):
                        each.bounds[level].append(bound)

    def _answer(self, index: int) -> tuple[float, ...] | None:
        """What the forest says; asked about many at once, which is cheaper, until its next fit."""
        if self._online is None or not self._online.forest.is_fitted:
            return None
        if index not in self._answers:
            ahead = range(index, min(index + self._online.fit_every, len(self._items)))
            answers = self._online.forest.quantiles((self.known[i], 0) for i in ahead)
            self._answers = dict(zip(ahead, answers, strict=True))
        return self._answers[index]


def load(workload: str, count: int, seed: int) -> list[Item]:
    """Read or generate; requests of a program arrive where they stand in the list."""
    if workload == mixed.NAME:
        entries = mixed.entries(mixed.Load(1.0, seed=seed, duration=float("inf"), count=count))
        texts = {entry.id: " ".join(m.content for m in entry.messages) for entry in entries}
        return [item(e, _words(texts[e.id])) for e in mixed.counted(entries)]
    if workload in MIXES:
        entries = build(workload, 1.0, seed, float("inf"), count=count)
        return [item(entry) for entry in entries]
    reader, _, rest = workload.partition(":")
    if rest and not Path(rest.partition("#")[0]).exists():
        folder = Path(os.environ.get("GIUSTO_DATA", "../shared/data")) / "traces"
        workload = f"{reader}:{folder / rest}"
    entries = sorted(readers.read(workload).entries, key=lambda entry: entry.arrival)
    return [item(entry) for entry in entries[:count]]


def item(entry: Entry, words: Iterable[int] = ()) -> Item:
    """What policies may see of an entry, and its length beside it."""
    step = entry.step
    ref = ProgramRef(step.program, step.call, stage=step.stage, app=step.app) if step else None
    if entry.prompt_tokens is None or entry.output_tokens is None:
        raise ConfigError(f"entry {entry.id} has no recorded lengths")
    ask = Submission(
        entry.id,
        entry.arrival,
        max(1, entry.prompt_tokens),
        service_class=entry.service_class,
        program=ref,
        cap=entry.max_tokens,
        sampling=SamplingParams(max_tokens=entry.max_tokens),
    )
    return Item(ask, max(1, min(entry.output_tokens, entry.max_tokens)), tuple(words))


def _words(text: str) -> list[int]:
    """Words as numbers: a stand-in for a tokenizer's ids."""
    return [zlib.crc32(word.encode()) for word in text.lower().split()]


def rows(name: str, judged: Judged, plain: Judged) -> list[str]:
    lengths = judged.lengths
    cells = [name, str(len(lengths)), f"{judged.num_cut / (judged.num_cut + len(lengths)):.1%}"]
    for which in (plain, judged):
        for level in LEVELS:
            pairs = zip(which.bounds[level], lengths, strict=True)
            cells.append(f"{fmean(length <= bound for bound, length in pairs):.1%}")
    bounds = judged.bounds[0.95]
    ratios = [bound / length for bound, length in zip(bounds, lengths, strict=True)]
    return [
        *cells,
        f"{fmean(ratios):.2f}",
        f"{median(ratios):.2f}",
        f"{fmean(bounds) / fmean(lengths):.2f}",
    ]


def main(
    workload: Annotated[list[str], typer.Option(help="reader:path, a built-in mix, or mixed")],
    predictor: Annotated[list[str] | None, typer.Option(help="histogram, forest")] = None,
    count: Annotated[int, typer.Option(help="arrivals taken of each workload")] = 12_000,
    taught: Annotated[float, typer.Option(help="share of them that only teaches")] = 0.3,
    at_once: Annotated[int, typer.Option(help="requests that run at once")] = 64,
    fit_every: Annotated[int, typer.Option(help="endings from fit to fit")] = 1000,
    seed: int = 0,
) -> None:
    """Coverage of the bounds at 0.9 and 0.95, and how many times the length the 0.95 bound is."""
    console = Console(width=None if Console().is_terminal else 150)
    table = Table("workload", "predictor", "class", "judged", "cut", "plain .9", ".95")
    for column in ("calibrated .9", ".95", "mean bound/length", "median", "of means"):
        table.add_column(column)
    for name in workload:
        items = load(name, count, seed)
        for kind in predictor or PREDICTORS:
            if kind not in PREDICTORS:
                raise ConfigError(f"no predictor {kind!r}; there are {', '.join(PREDICTORS)}")
            online = Online(fit_every) if kind == "forest" else None
            judged = Run(items, online, at_once).play(int(taught * len(items)))
            short = name.rpartition("/")[2]
            for service_class, both in sorted(judged.items()):
                if both[0].lengths:
                    table.add_row(short, kind, *rows(service_class, *both))
            if online is not None:
                console.print(
                    f"{short}: {online.num_fits} fits to at most {len(online.sample)} rows, "
                    f"{online.seconds / max(1, online.num_fits):.2f} s of a core each"
                )
    console.print(table)


if __name__ == "__main__":
    try:
        typer.run(main)
    except GiustoError as error:
        raise SystemExit(str(error)) from None
