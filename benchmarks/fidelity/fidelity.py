"""Does the simulator tell what the engine does? `mixed` at three loads, three runs each.

    python benchmarks/fidelity/fidelity.py [--rate LIGHT --rate KNEE --rate OVERLOAD] [--runs 3]
        [--duration 300] [--policy giusto] [--profile smollm2-135m-cpu] [--out fidelity]

Each run has a fresh server, the same arrivals and prompts, and one idle calibration for all, so the
same promises. One-second loops before and after it, in a process of their own, tell how fast the
machine is, the mean of eight each time; a run during which it changed by more than 5 % is repeated.
The simulator then gets what `--save-workload` recorded of that run (arrivals, lengths, promises)
and one scalar: the profile's calibration over the mean of both. The profile must come from
elsewhere.

Latencies are the client's, over offered requests, nearest rank. Step times are the engine's own
(start to end of each step, from its events: `serve.py`), all steps of the run. A figure is the
median over runs; its error is that of the simulated runs against the engine's; the bar is widened
to the engine's own spread, highest minus lowest. The gap between steps (booking, sending, planning)
is printed.

What is done is kept in OUT and not done again. Refuses while another process uses more than 20 % of
a core.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from compare import LOADS, figures, lines, row, steady  # noqa: E402
from quiet import wait_until_quiet  # noqa: E402
from steps import Step, StepLog, gaps, read  # noqa: E402

from giusto import build  # noqa: E402
from giusto.bench import results  # noqa: E402
from giusto.core.errors import GiustoError  # noqa: E402
from giusto.profiles.profile import Profile, load  # noqa: E402
from giusto.sim.cluster import Cluster  # noqa: E402
from giusto.sim.load import Load  # noqa: E402
from giusto.sim.run import SimRun, Sink, simulate  # noqa: E402
from giusto.sim.settings import SimSettings  # noqa: E402
from giusto.workload.records import Entry  # noqa: E402

#: No policy was tuned and no profile fitted on arrivals of this seed.
SEED = 2711
#: Loops whose mean tells the machine's speed: where that flips within seconds, one tells nothing.
LOOPS = 8
LOOP = f"""
from giusto.core.clock import WallClock
from giusto.engine.profile import calibration_loop
print(sum(calibration_loop(WallClock()) for _ in range({LOOPS})) / {LOOPS})
"""
HEADINGS = ("figure", "engine", "range", "simulated", "error", "bar", "spread", "")


@dataclass(frozen=True, slots=True)
class Run:
    """One engine run and where it is kept."""

    folder: Path
    rate: float
    duration: float
    policy: str
    idle: Path

    @property
    def loops(self) -> list[float]:
        """Seconds of the calibration loops around it."""
        return list(json.loads((self.folder / "loops.json").read_text()))

    @property
    def is_done(self) -> bool:
        return (self.folder / "loops.json").exists()

    @property
    def sent(self) -> Path:
        return self.folder / "sent.jsonl"

    @property
    def result(self) -> dict[str, Any]:
        return results.read(self.folder / "result.json")[0]

    @property
    def steps(self) -> list[Step]:
        return read(self.folder / "steps.jsonl")


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse(arguments)
    profile = load(given.profile)
    if profile.calibration is None:
        raise SystemExit(f"profile {profile.name} has no calibration: make one by `giusto profile`")
    same_settings(given.out, {"duration": given.duration, "policy": given.policy, "seed": SEED})
    console = Console(width=None if Console().is_terminal else 130)
    for name, rate in zip(LOADS, given.rate, strict=True):
        runs = [
            Run(
                given.out / f"{rate:g}" / str(number),
                rate,
                given.duration,
                given.policy,
                given.out / "idle.json",
            )
            for number in range(given.runs)
        ]
        for run in runs:
            if not run.is_done:
                measure(run)
        report(console, f"{name}: {rate:g}/s", name, runs, profile)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, action="append", help="three times, rising")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--duration", type=float, default=300.0)
    parser.add_argument("--policy", default="giusto")
    parser.add_argument("--profile", default="smollm2-135m-cpu")
    parser.add_argument("--out", type=Path, default=Path("fidelity"))
    given = parser.parse_args(arguments)
    given.rate = given.rate or [0.4, 0.8, 1.2]
    if len(given.rate) != len(LOADS) or sorted(given.rate) != given.rate or given.runs < 1:
        parser.error("give --rate three times, rising: light, knee, overload; and --runs from 1 on")
    return given


def same_settings(out: Path, settings: dict[str, Any]) -> None:
    """Runs of different settings must not meet in one folder."""
    path = out / "settings.json"
    out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(settings))
    elif (before := json.loads(path.read_text())) != settings:
        raise SystemExit(f"{out} has runs with {before}, not {settings}: give another --out")


# The engine


def measure(run: Run) -> None:
    """Do one engine run, its loops last: they say that it is done."""
    run.folder.mkdir(parents=True, exist_ok=True)
    if not run.idle.exists():
        wait_until_quiet()
        bench(run, run.folder, "--num-prompts", "1")
    flags = ("--request-rate", f"{run.rate:g}", "--duration", f"{run.duration:g}")
    wanted = {"--save-result": "result.json", "--save-workload": "sent.jsonl"}
    files = [word for flag, name in wanted.items() for word in (flag, str(run.folder / name))]

    def once() -> None:
        bench(run, run.folder, *flags, "--seed", str(SEED), *files)

    def say(text: str) -> None:
        print(f"{run.folder}: {text}", flush=True)

    loops = steady(wait_until_quiet, once, loop, say)
    (run.folder / "loops.json").write_text(json.dumps(loops))
    say(f"done, loop {loops[0]:.3f} s before, {loops[1]:.3f} s after")


def loop() -> float:
    """Seconds of the calibration loop, the mean of several."""
    done = subprocess.run([sys.executable, "-c", LOOP], check=True, capture_output=True, text=True)
    return float(done.stdout)


def bench(run: Run, folder: Path, *flags: str) -> None:
    """Load a fresh server."""
    with server(run.policy, folder / "steps.jsonl") as url:
        command = [sys.executable, "-m", "giusto.cli", "bench", "--base-url", url]
        command += ["--workload", "mixed", "--calibration", str(run.idle), *flags]
        with (folder / "bench.txt").open("w") as file:
            subprocess.run(command, check=True, stdout=file)


@contextmanager
def server(policy: str, steps: Path) -> Iterator[str]:
    """A fresh server; yields its address."""
    command = [sys.executable, str(HERE / "serve.py"), str(steps), "--port", "0"]
    command += ["--log-level", "warning", "--scheduling-policy", policy]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = (re.search(r"http://\S+:\d+", line) for line in process.stdout)
        url = next((match[0] for match in found if match), None)
        if url is None:
            raise SystemExit("the server did not start; it says why above")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


# The simulator


def replay(run: Run, profile: Profile, seed: int) -> tuple[dict[str, Any], list[Step]]:
    """Simulate what a run sent, on a machine as fast as it was then: the result and its steps."""
    assert profile.calibration is not None
    speed = profile.calibration / median(run.loops)
    settings = SimSettings(profile, run.policy, seed=seed, speed=speed)
    steps: list[Step] = []
    log = StepLog(steps.append)

    def make(settings: SimSettings, entries: Sequence[Entry], sink: Sink) -> Cluster:
        made = build.cluster(settings, entries, sink)
        for replica in made.replicas:
            replica.scheduler.subscribe(log.observe)
        return made

    result = simulate(SimRun(settings, Load(str(run.sent)), run.policy), make)
    log.settle()
    return result, steps


def report(console: Console, title: str, name: str, runs: Sequence[Run], profile: Profile) -> None:
    engine = [figures(run.result, run.steps) for run in runs]
    replayed = [figures(*replay(run, profile, seed)) for seed, run in enumerate(runs)]
    table = Table(title=f"{title}, {len(runs)} runs", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("figure", "") else "right")
    for line in lines(name, engine, replayed):
        table.add_row(*row(line))
    console.print(table)
    for run in runs:
        console.print(about(run, profile))


def about(run: Run, profile: Profile) -> str:
    """What the table does not tell of a run."""
    assert profile.calibration is not None
    steps = run.steps
    between = [1000 * seconds for seconds in gaps(steps)] or [0.0]
    planning = [1000 * step.plan for step in steps] or [0.0]
    sent, replayed = run.result["num_prompts"], len(run.sent.read_text().splitlines())
    speeds = ", ".join(f"{seconds:.3f}" for seconds in run.loops)
    return (
        f"{run.folder}: loops {speeds} s, speed {profile.calibration / median(run.loops):.3f}; "
        f"{len(steps)} steps, median gap between them {median(between):.2f} ms, of which planning "
        f"{median(planning):.2f} ms; {replayed} of {sent} requests replayed"
    )


if __name__ == "__main__":
    try:
        main()
    except (GiustoError, subprocess.CalledProcessError) as error:
        raise SystemExit(str(error)) from None
