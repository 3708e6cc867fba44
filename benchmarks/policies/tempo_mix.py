"""Policies on the workload `tempo-mix`, simulated: set-up T.

    python benchmarks/policies/tempo_mix.py --knee --jobs 4       find the knee
    python benchmarks/policies/tempo_mix.py --jobs 4              compare all policies around it
    python benchmarks/policies/tempo_mix.py --policy giusto --policy sarathi --load 1.0 --cv 1

One cell is a policy at a rate, a coefficient of variation of the gaps between arrivals and a seed:
600 s of arrivals on profile `llama-3.1-8b-a100`, the first 60 s served but not counted, run to the
end. Its result is a file under --out, written when it ends and not run again while what it was run
with is the same (delete the folder when the code of a policy has changed), so that a run that was
cut short resumes.

The knee is the highest Poisson rate at which `sarathi`, with its best chunk, attains 90 %, mean of
the seeds, bisected to 2 %; it stands in `giusto.workload.tempo_mix`. The ceiling is the share that
would attain if each request, and each program, had the machine for itself: by the profile's step
times and the true lengths. `NAME@oracle` is a policy that is told the true lengths: like
`srpt-oracle` no contender.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import Any

from giusto import build
from giusto.commands.simulate import policy_of
from giusto.core.latency import BatchShape
from giusto.core.slo import Delivery, is_attained
from giusto.policies import DEFAULT, REGISTRY, module_named
from giusto.profiles.profile import Profile
from giusto.profiles.profile import load as load_profile
from giusto.sim import load as loading
from giusto.sim.load import Load
from giusto.sim.run import SimRun
from giusto.sim.settings import SimSettings
from giusto.workload.agents import critical_path
from giusto.workload.arrivals import POISSON, Process
from giusto.workload.records import Entry
from giusto.workload.tempo_mix import CALLS_PER_ARRIVAL, CAP, KNEE, NAME, WARMUP, rows

PROFILE = "llama-3.1-8b-a100"
#: Options of policies that are better here than their defaults: the chunk is the best of 256, 512,
#: 1,024 and 2,048 tokens, on seeds 11 and 12 at 15 and 17 arrivals/s.
BEST = {"sarathi": "sarathi:chunk_tokens=1024"}
BASELINE = BEST["sarathi"]
#: After a policy's name: it is told the true lengths of answers.
ORACLE = "@oracle"
ATTAINED = 0.9
PRECISION = 1.02
CLASSES = ("chat", "task", "tree-of-thought", "deep-research", "batch")
#: Figures of a result that a table needs; distributions and timelines would be most of the file.
LEFT_OUT = ("distributions", "timeline")

Result = dict[str, Any]


def is_oracle(policy: str) -> bool:
    """Whether it is told what no server knows."""
    name, _ = policy_of(policy.removesuffix(ORACLE))
    return policy.endswith(ORACLE) or bool(getattr(module_named(name), "IS_ORACLE", False))


@dataclass(frozen=True)
class Cell:
    """One run: `rate` in arrivals per second, `cv` of the gaps between them, 1 for Poisson."""

    policy: str
    rate: float
    cv: float
    seed: int

    @property
    def load(self) -> Load:
        # Gamma gaps of shape k have the coefficient of variation 1 / sqrt(k).
        process = POISSON if self.cv == 1 else Process("gamma", round(self.cv**-2, 6))
        return Load(NAME, self.rate, self.seed, process=process)

    @property
    def run(self) -> SimRun:
        name, options = policy_of(self.policy.removesuffix(ORACLE))
        told = {"lengths": "oracle"} if self.policy.endswith(ORACLE) else {}
        settings = SimSettings(load_profile(PROFILE), name, options, seed=self.seed, **told)
        return SimRun(settings, self.load, self.policy)

    def path(self, folder: Path) -> Path:
        label = re.sub(r"[^\w.-]+", "_", self.policy)
        return folder / f"{label}-r{self.rate:g}-cv{self.cv:g}-s{self.seed}.json"

    def result(self, folder: Path) -> Result | None:
        """What its file says, None where there is none of the same run."""
        path = self.path(folder)
        if not path.exists():
            return None
        found: Result = json.loads(path.read_text())
        about = json.loads(json.dumps(self.run.about))
        return found if all(found.get(key) == value for key, value in about.items()) else None


def run_cell(cell: Cell, folder: Path) -> Result:
    """Run it and write its file, which is there whole or not at all."""
    made = build.simulate(cell.run)
    kept = {key: value for key, value in made.items() if key not in LEFT_OUT}
    path = cell.path(folder)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(kept, allow_nan=False))
    partial.replace(path)
    return kept


def results(cells: Sequence[Cell], folder: Path, jobs: int) -> dict[Cell, Result]:
    """The results of all cells; those that are missing run in `jobs` processes."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {cell: found for cell in cells if (found := cell.result(folder)) is not None}
    missing = [cell for cell in cells if cell not in done]
    for number, (cell, result) in enumerate(_run(missing, folder, jobs), start=1):
        done[cell] = result
        print(
            f"[{number}/{len(missing)}] {cell.policy} rate {cell.rate:g} cv {cell.cv:g} "
            f"seed {cell.seed}: attained {result['attainment']:.3f} of {result['offered']}",
            file=sys.stderr,
            flush=True,
        )
    return done


def _run(cells: Sequence[Cell], folder: Path, jobs: int) -> Iterator[tuple[Cell, Result]]:
    if jobs == 1:
        for cell in cells:
            yield cell, run_cell(cell, folder)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {pool.submit(run_cell, cell, folder): cell for cell in cells}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # what is under way ends, and is kept
            raise


# The knee


def knee(given: argparse.Namespace) -> float:
    """Bisect to `PRECISION`; returns the highest rate that was seen to attain `ATTAINED`."""
    least, most = low, high = given.between
    while high / low > PRECISION:
        rate = round((low * high) ** 0.5, 3)
        low, high = (rate, high) if _attained(rate, given) >= ATTAINED else (low, rate)
    # An end of the range that bisecting has stayed at was taken on trust.
    is_below = low == least and _attained(low, given) < ATTAINED
    if is_below or (high == most and _attained(high, given) >= ATTAINED):
        raise SystemExit(f"the knee is not between {least:g} and {most:g}: give other --between")
    return float(low)


def _attained(rate: float, given: argparse.Namespace) -> float:
    cells = [Cell(BASELINE, rate, 1.0, seed) for seed in given.seed]
    found = results(cells, given.out, given.jobs)
    reached = [found[cell]["attainment"] for cell in cells]
    print(f"{BASELINE} at {rate:g}/s: {mean(reached):.4f} ({min(reached):.3f}-{max(reached):.3f})")
    return mean(reached)


# The ceiling


class Alone:
    """What a machine without noise gives those that have it for themselves."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        longest = 2 * max(prompt for prompt, _ in rows()) + 2 * CAP
        steps = (
            profile.latency.step_time(BatchShape(decode_seqs=1, kv_tokens=tokens)) + profile.gap
            for tokens in range(longest)
        )
        #: Seconds in which a context grows from nothing to so many tokens, by decoding alone.
        self._grown = list(accumulate(steps, initial=0.0))

    def delivery(self, entry: Entry) -> Delivery:
        """The whole prompt in chunks, then token after token."""
        prompt, output = entry.prompt_tokens or 1, entry.output_tokens or 1
        start, done = entry.arrival, 0
        while done < prompt:
            chunk = min(prompt - done, self._profile.max_num_batched_tokens)
            shape = BatchShape(prefill_tokens=chunk, prefill_kv=chunk * done)
            start += self._profile.latency.step_time(shape) + self._profile.gap
            done += chunk
        base = start - self._grown[prompt]
        times = tuple(base + grown for grown in self._grown[prompt : prompt + output])
        return Delivery(entry.arrival, prompt, times, times[-1])

    def attained(self, entries: Iterable[Entry]) -> float:
        """The share of requests and programs, of those that are counted, that would attain."""
        programs: dict[str, list[Entry]] = defaultdict(list)
        met = []
        for entry in entries:
            if entry.arrival < WARMUP:
                continue
            if entry.step is not None:
                programs[entry.step.program].append(entry)
            else:
                met.append(is_attained(entry.promise, self.delivery(entry)))
        for calls in programs.values():
            took = critical_path(calls, lambda entry: self.delivery(entry).e2e)
            opened = calls[0].arrival
            whole = Delivery(opened, 1, (opened + took,), opened + took)
            met.append(is_attained(calls[0].promise, whole))
        return mean(met)


def ceiling(load: float, cv: float, given: argparse.Namespace) -> float:
    """Mean over the seeds."""
    profile = load_profile(PROFILE)
    alone = Alone(profile)
    rate = rate_of(load, given)
    loads = [Cell(BASELINE, rate, cv, seed).load for seed in given.seed]
    return mean(alone.attained(loading.entries(one, profile, {})) for one in loads)


# The table


def rate_of(load: float, given: argparse.Namespace) -> float:
    return float(round(load * given.knee_rate, 3))


def compare(given: argparse.Namespace) -> None:
    policies = list(given.policy or [name for name in REGISTRY if not is_oracle(name)])
    policies = [BEST.get(name, name) for name in policies]
    if given.also_oracle:
        policies += [name for name in REGISTRY if is_oracle(name)]
        policies.append(DEFAULT + ORACLE)
    policies = list(dict.fromkeys(policies))
    points = [(load, cv) for cv in given.cv for load in given.load]
    # Point by point and seed by seed, so that a run that is cut short has whole rows.
    cells = {
        (load, cv): [
            Cell(policy, rate_of(load, given), cv, seed)
            for seed in given.seed
            for policy in policies
        ]
        for load, cv in points
    }
    found = results([cell for some in cells.values() for cell in some], given.out, given.jobs)
    rate = given.knee_rate
    print(f"knee {rate:g} arrivals/s, {rate * CALLS_PER_ARRIVAL:.3g} calls/s; seeds {given.seed}")
    for load, cv in points:
        by_policy = {
            policy: [found[cell] for cell in cells[load, cv] if cell.policy == policy]
            for policy in policies
        }
        law = "Poisson" if cv == 1 else f"gamma gaps, CV {cv:g}"
        print(
            f"\n{load:g} x knee = {rate_of(load, given):g}/s, {law}; "
            f"ceiling {ceiling(load, cv, given):.1%}\n"
        )
        print("\n".join(table(by_policy)))


def table(by_policy: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    """A row per policy, best first; oracles are compared with the best other, never are it."""
    heads = ("policy", "attained", "promised", *CLASSES, "cut-off", "soft", "violations")
    yield _row((*heads, "p95 TTFT s", "p95 program s"))
    yield _row(["---"] * (len(heads) + 2))
    attained = {name: mean(_figures(runs, "attainment")) for name, runs in by_policy.items()}
    for policy in sorted(by_policy, key=lambda name: -attained[name]):
        runs = by_policy[policy]
        shares = _figures(runs, "attainment")
        others = [attained[n] for n in by_policy if n != policy and not is_oracle(n)]
        violations = "-"
        if others and max(others) < 1:
            violations = f"{(1 - attained[policy]) / (1 - max(others)):.2f}"
        yield _row(
            (
                f"{policy} (oracle)" if is_oracle(policy) else policy,
                f"{mean(shares):.1%} ± {(max(shares) - min(shares)) / 2:.1%}",
                f"{mean(_figures(runs, 'attainment_without_best_effort')):.1%}",
                *(f"{_of_class(runs, name):.1%}" for name in CLASSES),
                f"{_ratio(runs, 'service_gain_cutoff'):.3f}",
                f"{_ratio(runs, 'service_gain'):.3f}",
                violations,
                _seconds(runs, "p95_ttft_offered_ms"),
                _seconds(runs, "p95_program_ms"),
            )
        )


def _row(words: Iterable[str]) -> str:
    return f"| {' | '.join(words)} |"


def _figures(runs: Sequence[Result], key: str) -> list[float]:
    return [run[key] for run in runs]


def _of_class(runs: Sequence[Result], name: str) -> float:
    shares = [run["by_class"].get(name, {}).get("attainment") for run in runs]
    return mean([share for share in shares if share is not None] or [0.0])


def _ratio(runs: Sequence[Result], key: str) -> float:
    return mean(run[key] / run["service_gain_possible"] for run in runs)


def _seconds(runs: Sequence[Result], key: str) -> str:
    """Mean over the seeds; infinite where any seed's percentile was never answered."""
    found = [run[key] for run in runs]
    return "∞" if None in found else f"{mean(found) / 1000:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--knee", action="store_true", help="find the knee, and nothing else")
    parser.add_argument("--between", type=float, nargs=2, default=(10.0, 18.0), help="for --knee")
    parser.add_argument("--policy", action="append", help="name or name:option=value+…; [all]")
    parser.add_argument("--also-oracle", action="store_true", help="references that know lengths")
    parser.add_argument("--load", type=float, action="append", help="× knee; [0.8, 1.0, 1.5]")
    parser.add_argument("--cv", type=float, action="append", help="of the gaps; [1, 3]")
    parser.add_argument("--seed", type=int, action="append", help="[1 to 5]")
    parser.add_argument("--knee-rate", type=float, default=KNEE, help="[the workload's]")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/tempo-mix"))
    given = parser.parse_args()
    given.seed = given.seed or [1, 2, 3, 4, 5]
    given.load = given.load or [0.8, 1.0, 1.5]
    given.cv = given.cv or [1.0, 3.0]
    if given.knee:
        rate = knee(given)
        print(f"knee: {rate:g} arrivals/s, {rate * CALLS_PER_ARRIVAL:.3g} calls/s")
    else:
        compare(given)


if __name__ == "__main__":
    main()
