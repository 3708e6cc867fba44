"""AdaServe's baselines in the simulator, beside what its paper shows of them.

    python benchmarks/paper/adaserve_baselines.py [--jobs 2] [--json FILE]      the table
    python benchmarks/paper/adaserve_baselines.py --fit                        fit first

Policy `sarathi` stands for the published Sarathi (vLLM with chunked prefill: 2,048 tokens and
sequences a step), `vllm-v0` for the published vLLM (whole prompts first, 512 sequences); prefix
caching is off. Measure: `adaserve_attainment`, the share of requests with a mean TPOT in time.

Three things are unknown and fitted per model to the trace of 3.0 requests/s alone, all other points
are predictions: the decode step at batch 1 (the low end of the table, `adaserve_tables.py`), and
the share and law of answers that end before the cap of 256 tokens (`workload.answers`). Two figures
are matched by least squares, the attainment of both systems; the third condition is the mean answer
that AdaServe's published goodput there implies, which ties the share to the shape of the law. One
seed; a row's hidden length is the same for every system.

The traces are read from $GIUSTO_DATA or ../shared/data beside the repository.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from giusto.build import simulate
from giusto.profiles.profile import Profile, load
from giusto.sim.load import Load
from giusto.sim.run import SimRun
from giusto.sim.settings import SimSettings
from giusto.workload.answers import Answers

sys.path.insert(0, str(Path(__file__).parents[1] / "profiles"))

from adaserve_published import CAP, FITTED_TRACE, FURTHER, MODELS, POINTS, POLICIES, mean_answer
from adaserve_tables import PUBLISHED, profile

DATA = Path(os.environ.get("GIUSTO_DATA") or Path(__file__).parents[3] / "shared" / "data")
MIX = DATA / "traces" / "adaserve_slo_mix.csv.gz"

#: What the paper's scripts set for each system, section 2.1 of the artifact's `test.sh`.
LIMITS: dict[str, dict[str, Any]] = {
    "sarathi": {"policy_options": {"chunk_tokens": "2048"}, "max_num_seqs": 2048},
    "vllm-v0": {"max_num_seqs": 512},
}
OURS = ("giusto", "edf-shed")

SHAPES = (0.5, 1.0, 2.0, 4.0)
COARSE_MS = range(20, 41, 4)
REFINEMENTS_MS = (2.0, 1.0, 0.5)


@dataclass(frozen=True, slots=True)
class Guess:
    """A fit: milliseconds of a decode step at batch 1, and the law of early answers."""

    model: str
    decode_ms: float
    shape: float

    @property
    def answers(self) -> Answers:
        """Enough end early, at cap / (1 + shape) on average, for the published mean."""
        missing = 1 - mean_answer(self.model) / CAP
        return Answers(round(missing * (1 + self.shape) / self.shape, 3), self.shape)

    @property
    def profile(self) -> Profile:
        return profile(PUBLISHED[self.model], self.decode_ms)


#: What --fit found for both. The decode steps are in `adaserve_tables.py` and the shipped profiles.
FITTED_SHAPE = 4.0


class Outcome(NamedTuple):
    """Percent of requests whose mean TPOT was in time; median TTFT in seconds."""

    attained: float
    ttft: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One run."""

    profile: Profile
    answers: Answers
    trace: str
    policy: str

    def run(self) -> Outcome:
        """Simulate it."""
        settings = SimSettings(
            self.profile,
            self.policy,
            prefix_caching=False,
            max_num_batched_tokens=2048,
            **LIMITS.get(self.policy, {}),
        )
        given = Load(f"adaserve:{MIX}#{self.trace}", answers=self.answers)
        run = simulate(SimRun(settings, given, self.policy))
        return Outcome(100 * run["adaserve_attainment"], run["median_ttft_ms"] / 1000)


RunAll = Callable[[Iterable[Cell]], list[Outcome]]


def fit(run_all: RunAll, console: Console) -> dict[str, Guess]:
    """Per model the guess with the least squared errors on the fitted trace.

    For each shape the step is searched on a coarse grid, then halved around the best so far.
    """
    errors: dict[Guess, float] = {}

    def best(model: str, shape: float) -> Guess:
        tried = [guess for guess in errors if (guess.model, guess.shape) == (model, shape)]
        return min(tried, key=lambda guess: (errors[guess], guess.decode_ms))

    def judge(guesses: Sequence[Guess]) -> None:
        new = [guess for guess in guesses if guess not in errors]
        points = {model: _fitted_points(model) for model in MODELS}
        cells = [
            Cell(guess.profile, guess.answers, FITTED_TRACE, POLICIES[point.system])
            for guess in new
            for point in points[guess.model]
        ]
        got = iter(run_all(cells))
        for guess in new:
            errors[guess] = sum(
                (next(got).attained - p.published) ** 2 for p in points[guess.model]
            )

    pairs = [(model, shape) for model in MODELS for shape in SHAPES]
    judge([Guess(model, ms, shape) for model, shape in pairs for ms in COARSE_MS])
    for step in REFINEMENTS_MS:
        centres = [best(model, shape) for model, shape in pairs]
        judge(
            [Guess(c.model, c.decode_ms + way, c.shape) for c in centres for way in (-step, step)]
        )

    table = Table("model", "shape", "early", "decode step, ms", "sum of squared errors")
    for model, shape in pairs:
        guess = best(model, shape)
        row = (shape, guess.answers.early, guess.decode_ms)
        table.add_row(model, *(f"{value:g}" for value in row), f"{errors[guess]:.2f}")
    console.print("Fit to 3.0 requests/s alone: the best step for each law of early answers")
    console.print(table)
    return {
        model: min((best(model, shape) for shape in SHAPES), key=errors.__getitem__)
        for model in MODELS
    }


def _fitted_points(model: str) -> list[Any]:
    return [point for point in POINTS[model] if point.trace == FITTED_TRACE]


def measure(guess: Guess, run_all: RunAll) -> dict[str, Any]:
    """All figures of a model: beside the published ones, and our own policies' at those points."""
    made = guess.profile
    points = POINTS[guess.model] + FURTHER[guess.model]
    traces = list(dict.fromkeys(point.trace for point in POINTS[guess.model]))
    wanted = dict.fromkeys((p.trace, POLICIES[p.system]) for p in points)
    wanted |= dict.fromkeys((trace, policy) for policy in OURS for trace in traces)
    got = dict(zip(wanted, run_all(Cell(made, guess.answers, *key) for key in wanted), strict=True))
    rows = [
        {
            **asdict(point),
            "is_fitted": point.trace == FITTED_TRACE,
            "is_judged": point in POINTS[guess.model],
            "published": point.published,
            "simulated": got[point.trace, POLICIES[point.system]].attained,
        }
        for point in points
    ]
    return {
        "model": guess.model,
        "decode_ms": guess.decode_ms,
        "early": guess.answers.early,
        "shape": guess.shape,
        "mean_answer": mean_answer(guess.model),
        "points": rows,
        "ours": [
            {"trace": trace, **{policy: got[trace, policy]._asdict() for policy in OURS}}
            for trace in traces
        ],
    }


def show(figures: dict[str, Any], console: Console) -> None:
    """Print a model's fitted values, tables and mean errors."""
    console.print(
        f"\n{figures['model']}: decode step at batch 1 {figures['decode_ms']:g} ms; "
        f"{100 * figures['early']:.1f} % of answers end early, at {CAP} x u ** "
        f"{figures['shape']:g}; mean answer {figures['mean_answer']:.0f} tokens"
    )
    table = Table("system", "requests/s", "trace", "published", "simulated", "error")
    further = Table("system", "variant", "trace", "published", "simulated", "error")
    for row in figures["points"]:
        published = " / ".join(f"{figure:g}" for figure in row["figures"])
        if len(row["figures"]) > 1:
            published += f" = {row['published']:.1f}"
        error = f"{row['simulated'] - row['published']:+.1f}"
        texts = (row["system"], row["rates"], row["trace"], published, f"{row['simulated']:.1f}")
        if row["is_judged"]:
            table.add_row(*texts, error + (" fitted" if row["is_fitted"] else ""))
        else:
            further.add_row(*texts, error)
    console.print(table)
    judged = [row for row in figures["points"] if row["is_judged"]]
    for system in (*POLICIES, "both"):
        rows = [row for row in judged if system in (row["system"], "both")]
        errors = [abs(row["simulated"] - row["published"]) for row in rows]
        predicted = [e for e, row in zip(errors, rows, strict=True) if not row["is_fitted"]]
        console.print(
            f"{system}: mean absolute error {mean(errors):.1f} points, {mean(predicted):.1f} "
            f"without the fitted point, largest {max(errors):.1f}"
        )
    console.print("Figures 10 and 11, at no bar:")
    console.print(further)
    console.print("Our policies, without speculation; in brackets the median TTFT, never promised:")
    ours = Table("trace", *OURS)
    for row in figures["ours"]:
        cells = (f"{row[policy]['attained']:.1f} ({row[policy]['ttft']:.1f} s)" for policy in OURS)
        ours.add_row(row["trace"], *cells)
    console.print(ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit anew, not the shipped values")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all figures here")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:

        def run_all(cells: Iterable[Cell]) -> list[Outcome]:
            return pool.map(Cell.run, list(cells), chunksize=1)

        if given.fit:
            guesses = fit(run_all, console)
        else:
            guesses = {
                model: Guess(model, PUBLISHED[model].decode_ms, FITTED_SHAPE) for model in MODELS
            }
        for model in MODELS:
            shipped = load(model).latency
            if guesses[model].profile.latency != shipped:
                console.print(f"{model}: the shipped profile has other step times")
        results = [measure(guesses[model], run_all) for model in MODELS]
    for figures in results:
        show(figures, console)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
