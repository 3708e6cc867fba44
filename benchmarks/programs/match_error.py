"""How far off the remaining output tokens of real agent programs are foretold, and how fast.

Programs of GIUSTO_DATA (default ../shared/data) are split by sha1 of their ids: of four parts one
is held out, the others are learned from in the order of the file, each to its end. Then, after each
call of a held-out program that ends with tokens still to come, what the matcher says is compared
with the truth, |estimate - true| / true, and so is the median of what the app's learned programs
had left after as many calls. Held-out programs teach nothing. Calls run without queueing.

    python benchmarks/programs/match_error.py
    python benchmarks/programs/match_error.py --ids-only      # no parents, no stages
    python benchmarks/programs/match_error.py --inner         # within the learned part, for tuning
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from giusto.core.events import Arrived, Event, Finished, ProgramClosed
from giusto.core.request import FinishReason, ProgramRef, Request, Submission
from giusto.programs.graph import Graph
from giusto.programs.history import CAPACITY, Past
from giusto.programs.matcher import HistoryMatcher
from giusto.workload.readers import read
from giusto.workload.records import Entry

DATA = Path(os.environ.get("GIUSTO_DATA", "../shared/data")) / "programs"
SOURCES = {
    "claude-code": "claude_code_sessions.jsonl.gz",
    "tau": "tau_airline_text.jsonl.gz",
    "mini-swe": "mini_swe_agent_text.jsonl.gz",
    "magentic": "magentic_one_lengths.jsonl.gz",
}
PARTS = 4
#: Seconds a token, to put calls in order; of no other consequence.
PROMPT_SECONDS, OUTPUT_SECONDS = 1e-5, 0.006


@dataclass(frozen=True)
class Program:
    """A program and its calls, each with when it comes and ends if nothing queues."""

    id: str
    app: str | None
    calls: list[tuple[float, float, Entry]]

    @property
    def outputs(self) -> list[int]:
        """Output tokens in the order in which the calls end."""
        return [e.output_tokens or 1 for _, _, e in sorted(self.calls, key=lambda c: c[1])]


def load(source: str, *, ids_only: bool) -> list[Program]:
    """Programs of one source."""
    by_id: dict[str, list[Entry]] = defaultdict(list)
    for entry in read(f"{source}:{DATA / SOURCES[source]}").entries:
        assert entry.step is not None
        by_id[entry.step.program].append(entry)
    return [timed(name, entries, ids_only) for name, entries in by_id.items()]


def timed(name: str, entries: list[Entry], ids_only: bool) -> Program:
    """Lay the calls of a program out in time."""
    ends: dict[str, float] = {}
    calls = []
    for entry in entries:
        step = entry.step
        assert step is not None
        start = max((ends[parent] + step.tool_time for parent in entry.waits_for), default=0.0)
        work = PROMPT_SECONDS * (entry.prompt_tokens or 1)
        ends[step.call] = start + work + OUTPUT_SECONDS * (entry.output_tokens or 1)
        bare = replace(step, parents=(), stage=None, is_final=False)
        seen = replace(entry, step=bare) if ids_only else entry
        calls.append((start, ends[step.call], seen))
    first = entries[0].step
    return Program(name, first.app if first else None, calls)


def events(program: Program) -> Iterator[Event]:
    """What a server that never queues would tell, the closing left out."""
    told: list[tuple[float, int, Entry]] = []
    for start, end, entry in program.calls:
        told += [(start, 1, entry), (end, 0, entry)]
    told.sort(key=lambda each: each[:2])
    requests: dict[str, Request] = {}
    for now, is_start, entry in told:
        if is_start:
            requests[entry.id] = request_of(entry, now)
            yield Arrived(requests[entry.id], now)
        else:
            request = requests[entry.id]
            request.num_output_tokens = entry.output_tokens or 1
            request.first_token = now - OUTPUT_SECONDS * (request.num_output_tokens - 1)
            request.last_token = now
            yield Finished(entry.id, now, FinishReason.STOP)


def request_of(entry: Entry, now: float) -> Request:
    """The call as a server sees it when it comes."""
    step = entry.step
    assert step is not None
    ref = ProgramRef(step.program, step.call, step.parents, step.stage, step.is_final, step.app)
    return Request.of(Submission(entry.id, now, max(1, entry.prompt_tokens or 1), program=ref))


def learn(matcher: HistoryMatcher, program: Program) -> None:
    """Let a program run to its end."""
    for event in events(program):
        matcher.observe(event)
    end = max(call[1] for call in program.calls)
    matcher.observe(ProgramClosed(program.id, end, end, None, program.app, len(program.calls)))


class AppMedian:
    """What an app's programs had left after so many calls, over all that were learned."""

    def __init__(self, programs: list[Program]) -> None:
        self.left: dict[tuple[str | None, int], list[int]] = defaultdict(list)
        for program in programs:
            left = sum(program.outputs)
            for done, output in enumerate(program.outputs, start=1):
                left -= output
                if left > 0:
                    self.left[program.app, done].append(left)
        self.medians = {key: median(left) for key, left in self.left.items()}

    def of(self, app: str | None, done: int) -> float:
        """Where none came so far: what was left at the last number of calls that any did."""
        while done > 1 and (app, done) not in self.medians:
            done -= 1
        return self.medians.get((app, done), 0.0)


def errors(
    matcher: HistoryMatcher, counted: AppMedian, program: Program
) -> Iterator[tuple[float, float]]:
    """Relative errors of both, after each call with tokens still to come."""
    left, done = sum(program.outputs), 0
    for event in events(program):
        matcher.observe(event)
        if not isinstance(event, Finished):
            continue
        left, done = left - program.outputs[done], done + 1
        if left > 0:
            ahead = matcher.ahead(program.id)
            said = ahead.output_tokens if ahead else 0.0
            yield abs(said - left) / left, abs(counted.of(program.app, done) - left) / left


def part(name: str) -> int:
    """Which of the parts a program belongs to."""
    return int(hashlib.sha1(name.encode()).hexdigest(), 16) % PARTS


Sources = dict[str, list[Program]]


def splits(sources: Sources, *, inner: bool) -> Iterator[tuple[Sources, Sources]]:
    """What to learn from and what to measure, by source."""
    learned = {s: [p for p in programs if part(p.id)] for s, programs in sources.items()}
    if not inner:
        yield (
            learned,
            {s: [p for p in programs if not part(p.id)] for s, programs in sources.items()},
        )
        return
    for fold in range(PARTS):
        yield (
            {s: [p for p in ps if part(f"{p.id} inner") != fold] for s, ps in learned.items()},
            {s: [p for p in ps if part(f"{p.id} inner") == fold] for s, ps in learned.items()},
        )


def measure(sources: Sources, *, inner: bool) -> HistoryMatcher:
    """Print the errors by source; returns the matcher that learned last."""
    matcher = HistoryMatcher()
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for learned, held_out in splits(sources, inner=inner):
        matcher = HistoryMatcher()
        for programs in learned.values():
            for program in programs:
                learn(matcher, program)
        counted = AppMedian([p for programs in learned.values() for p in programs])
        for source, programs in held_out.items():
            counts[source][0] += len(learned[source])
            counts[source][1] += len(programs)
            for program in programs:
                found[source] += errors(matcher, counted, program)
        print(f"history: {len(matcher.history)} graphs")
        apps = {p.app for programs in learned.values() for p in programs}
        print(
            "match used:", {str(app): matcher.trust.in_match(app) for app in sorted(map(str, apps))}
        )
    found["all"] = [pair for pairs in found.values() for pair in pairs]
    counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
    print(
        f"{'source':12} {'learned':>8} {'held out':>9} {'points':>7} {'matcher':>8}"
        f" {'app median':>11} {'closer':>7}"
    )
    for source, pairs in found.items():
        if pairs:
            matched, medians = (median(column) for column in zip(*pairs, strict=True))
            closer = sum(ours < theirs for ours, theirs in pairs) / len(pairs)
            learned_count, held_count = counts[source]
            print(
                f"{source:12} {learned_count:8} {held_count:9} {len(pairs):7} {matched:8.3f}"
                f" {medians:11.3f} {closer:7.2f}"
            )
    return matcher


def clock(learned: HistoryMatcher, programs: list[Program]) -> None:
    """Print how long an event takes with a full history of their app, some of it twice."""
    graphs = [past.graph for past in learned.history.past() if past.graph.app == programs[0].app]
    twice = [*graphs, *(Graph(graph.app, graph.stages) for graph in graphs)]
    matcher = HistoryMatcher(Past(graph) for graph in twice[-CAPACITY:])
    times: dict[str, list[float]] = defaultdict(list)
    for program in programs:
        if part(program.id):
            continue
        closing = ProgramClosed(program.id, 1e6, 1e6, None, program.app, len(program.calls))
        for event in (*events(program), closing):
            began = time.perf_counter()
            matcher.observe(event)
            times[type(event).__name__].append(time.perf_counter() - began)
    print(f"\nseconds of one event with {len(matcher.history)} graphs, in ms")
    print(f"{'event':14} {'count':>7} {'median':>8} {'p99':>8} {'most':>8}")
    for name, taken in times.items():
        taken.sort()
        p99 = taken[int(0.99 * (len(taken) - 1))]
        print(
            f"{name:14} {len(taken):7} {1e3 * median(taken):8.3f} {1e3 * p99:8.3f}"
            f" {1e3 * taken[-1]:8.3f}"
        )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ids-only", action="store_true", help="withhold parents and stages")
    parser.add_argument("--inner", action="store_true", help="leave the held-out part untouched")
    parser.add_argument("--source", action="append", choices=SOURCES, help="default: all")
    args = parser.parse_args()
    sources = {s: load(s, ids_only=args.ids_only) for s in args.source or SOURCES}
    matcher = measure(sources, inner=args.inner)
    if "claude-code" in sources and not args.inner:
        clock(matcher, sources["claude-code"])


if __name__ == "__main__":
    main()
