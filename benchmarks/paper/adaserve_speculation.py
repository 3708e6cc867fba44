"""AdaServe and speculation baselines in the simulator, beside what the paper shows.

    python benchmarks/paper/adaserve_speculation.py [--jobs 2] [--model NAME] [--mode MODE …]
    python benchmarks/paper/adaserve_speculation.py --fit            level and spread of the draft

Traces, lengths of answers, step times and the measure are those of `adaserve_baselines.py`. Here
the draft's quality, `level` and `spread` of the profile, is fitted per model to the trace of 3.0
requests/s alone: to AdaServe's tokens per iteration there (figure 12) and its attainment; all else
is predicted. Systems, with the artifact's limits (adaserve.md 1.6, 2.1):

    adaserve    sarathi's order, trees within B beside prompt chunks, a mixed step of 1,024 tokens
    chain:k     vLLM-Spec: whole prompts before decodes, 512 sequences
    giusto      our selection, the same limits as adaserve's; `+policy`: beside our own policy

Tokens per iteration: mean over requests' decode steps of the tokens that one yields, the target's
own included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any, NamedTuple

from adaserve_baselines import FITTED_SHAPE, MIX, Guess
from adaserve_published import FITTED_TRACE, LAST_TRACE, LLAMA, MODELS, QWEN
from rich.console import Console
from rich.table import Table

from giusto import build
from giusto.core.events import Event, Stepped
from giusto.core.slo import is_adaserve_attained
from giusto.metrics.records import Record
from giusto.profiles.profile import DraftQuality, load
from giusto.sim.cluster import Cluster
from giusto.sim.load import Load
from giusto.sim.run import SimRun, Sink, simulate
from giusto.sim.settings import SimSettings
from giusto.workload.records import Entry

TRACES = (
    "fig8-9_rps2.4_ol256",
    "fig8-9_rps2.8_ol256",
    FITTED_TRACE,
    "fig8-9_rps3.2_ol256",
    LAST_TRACE,
)
#: Attainment in percent at those traces (figures 8 and 9), where a file was run twice the mean.
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    LLAMA: {
        "adaserve": (98.4, 98.6, 97.9, 94.4, 94.2),
        "chain:4": (98.4, 98.0, 95.9, 91.25, 80.4),
        "chain:6": (98.0, 97.6, 95.7, 90.6, 79.45),
        "chain:8": (96.2, 94.5, 92.3, 81.9, 56.3),
    },
    QWEN: {
        "adaserve": (98.75, 97.5, 95.5, 92.9, 90.35),
        "chain:4": (99.1, 98.1, 94.2, 87.0, 65.75),
        "chain:6": (97.2, 94.9, 87.6, 71.1, 43.6),
        "chain:8": (91.1, 83.7, 68.5, 52.05, 22.3),
    },
}
#: AdaServe's tokens per iteration (figure 12).
TOKENS = {
    LLAMA: (6.23, 6.17, 6.05, 5.71, 5.40),
    QWEN: (3.855, 3.77, 3.58, 3.365, 3.10),
}
#: By model: tokens that prompts and roots of a mixed step share beside B, and active requests.
ADASERVE_LIMITS = {LLAMA: (512, 96), QWEN: (768, 80)}
LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
SPREADS = (0.5, 1.0, 1.5, 2.0, 3.0)


class Outcome(NamedTuple):
    """Percent attained, tokens per iteration, goodput in tokens/s, p95 TTFT and E2E in seconds."""

    attained: float
    tokens: float
    goodput: float
    ttft: float
    e2e: float


@dataclass
class Count:
    """A subscriber that counts what decode steps yield."""

    begun: set[str] = field(default_factory=set)
    steps: int = 0
    tokens: int = 0

    def observe(self, event: Event) -> None:
        if isinstance(event, Stepped):
            for request_id, made in event.outcome.yields.items():
                if made.tokens and request_id in self.begun:
                    self.steps += 1
                    self.tokens += len(made.tokens)
                elif made.tokens:
                    self.begun.add(request_id)


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    model: str
    trace: str
    mode: str
    quality: DraftQuality | None = None
    seed: int = 0

    @property
    def settings(self) -> SimSettings:
        profile = load(self.model)
        if self.quality is not None:
            profile = replace(profile, draft={"default": self.quality})
        mode, _, policy = self.mode.partition("+")
        given: dict[str, Any] = {"speculation": mode, "seed": self.seed, "prefix_caching": False}
        if mode.startswith("chain"):
            return SimSettings(profile, "vllm-v0", max_num_seqs=512, **given)
        chunk, seqs = ADASERVE_LIMITS[self.model]
        given |= {"max_num_batched_tokens": 1024, "max_num_seqs": seqs}
        if policy:
            return SimSettings(profile, "giusto", **given)
        return SimSettings(profile, "sarathi", {"chunk_tokens": str(chunk)}, **given)

    def run(self) -> Outcome:
        count = Count()
        kept: list[Record] = []

        def make(settings: SimSettings, entries: Sequence[Entry], sink: Sink) -> Cluster:
            def tap(records: tuple[Record, ...]) -> None:
                kept.extend(records)
                sink(records)

            made = build.cluster(settings, entries, tap)
            for replica in made.replicas:
                replica.scheduler.subscribe(count.observe)
            return made

        answers = Guess(self.model, 0.0, FITTED_SHAPE).answers
        given = Load(f"adaserve:{MIX}#{self.trace}", answers=answers)
        found = simulate(SimRun(self.settings, given, self.mode), make)
        latencies = found["distributions"]["all"]
        return Outcome(
            100 * found["adaserve_attainment"],
            count.tokens / max(1, count.steps),
            _goodput(kept),
            (latencies["ttft_ms"][95] or float("inf")) / 1000,
            (latencies["e2el_ms"][95] or float("inf")) / 1000,
        )


def _goodput(records: Sequence[Record]) -> float:
    """Tokens per second of requests that kept their mean TPOT, over the whole run."""
    tokens = sum(
        len(record.token_times)
        for record in records
        if is_adaserve_attained(record.slo, record.delivery)
    )
    ended = max(record.token_times[-1] for record in records if record.token_times)
    return tokens / (ended - min(record.arrival for record in records))


def fit(pool: Any, models: Sequence[str], console: Console) -> dict[str, DraftQuality]:
    """Per model the draft that comes nearest: squared errors, a tenth of a token as one point."""
    best = {}
    for model in models:
        guesses = [DraftQuality(level, spread) for level in LEVELS for spread in SPREADS]
        cells = [Cell(model, FITTED_TRACE, "adaserve", guess) for guess in guesses]
        at = TRACES.index(FITTED_TRACE)
        errors = {}
        for guess, got in zip(guesses, pool.map(Cell.run, cells, chunksize=1), strict=True):
            off = 10 * (got.tokens - TOKENS[model][at])
            errors[guess] = off**2 + (got.attained - PUBLISHED[model]["adaserve"][at]) ** 2
        table = Table("level", "spread", "squared error", title=f"{model}: best of the grid")
        for guess in sorted(errors, key=errors.__getitem__)[:5]:
            table.add_row(f"{guess.level:g}", f"{guess.spread:g}", f"{errors[guess]:.2f}")
        console.print(table)
        best[model] = min(errors, key=errors.__getitem__)
    return best


def show(model: str, got: dict[tuple[str, str], Outcome], modes: Sequence[str], c: Console) -> None:
    table = Table(
        *("system", "trace", "published", "simulated", "error"),
        *("tokens/step", "published", "goodput", "p95 TTFT", "p95 E2E"),
        title=model,
    )
    for mode in modes:
        published = PUBLISHED[model].get(mode)
        errors = []
        for at, trace in enumerate(TRACES):
            found = got[mode, trace]
            if published:
                errors.append(found.attained - published[at])
            table.add_row(
                mode,
                trace,
                f"{published[at]:.1f}" if published else "",
                f"{found.attained:.1f}",
                f"{errors[-1]:+.1f}" if published else "",
                f"{found.tokens:.2f}",
                f"{TOKENS[model][at]:.2f}" if mode == "adaserve" else "",
                f"{found.goodput:.0f}",
                f"{found.ttft:.1f}",
                f"{found.e2e:.1f}",
            )
        if errors:
            table.add_row(mode, "mean absolute error", "", "", f"{mean(map(abs, errors)):.1f}")
        table.add_section()
    c.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit anew, not the shipped values")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--mode", action="append")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    modes = given.mode or ["off", "chain:4", "chain:6", "chain:8", "static", "adaserve", "giusto"]
    models = given.model or MODELS
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        qualities = fit(pool, models, console) if given.fit else {}
        for model in models:
            keys = [(mode, trace) for mode in modes for trace in TRACES]
            cells = [Cell(model, trace, mode, qualities.get(model)) for mode, trace in keys]
            outcomes = pool.map(Cell.run, cells, chunksize=1)
            show(model, dict(zip(keys, outcomes, strict=True)), modes, console)


if __name__ == "__main__":
    main()
