"""Attainment of each policy on the workload `mixed`, on the real engine over HTTP.

    python benchmarks/policies/mixed.py --rate 1 --policy fcfs --seed 11          one cell
    python benchmarks/policies/mixed.py --capacity 0.9 --policy fcfs --seed 11    find a rate
    python benchmarks/policies/mixed.py --rate 2 --seed 1 --seed 2 --seed 3       compare all

Each cell gets a server of its own (a fresh prefix cache). Cells are written to --out as they
finish and not run again, so a run that was cut short resumes. All cells share one calibration.
Refuses while another process uses more than 20 % of a core.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parent.parent))

from quiet import wait_until_quiet

HERE = Path(__file__).parent
GIUSTO = (sys.executable, "-m", "giusto.cli")
POLICIES = ("giusto", "fcfs", "sarathi", "priority", "edf")


@contextmanager
def server(policy: str, classes: Path) -> Iterator[str]:
    """Run a server for one cell; yields its address."""
    policy, _, mode = policy.partition("+speculation=")
    name, _, options = policy.partition(":")
    flags = [
        word for option in options.split("+") if option for word in ("--policy-option", option)
    ]
    flags += ["--speculation", mode] if mode else []
    command = [*GIUSTO, "serve", "--port", "0", "--scheduling-policy", name, *flags]
    config = ["--config", str(classes), "--log-level", "warning"]
    process = subprocess.Popen([*command, *config], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://\S+:\d+", line):
                yield found[0]
                return
        raise SystemExit(f"{' '.join(command)} did not start")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def cell(policy: str, rate: float, seed: int, given: argparse.Namespace) -> dict:
    """The result of one run, from its file if it is there."""
    label = re.sub(r"[:+=]", "_", policy)
    if given.classes.stem != "mixed":
        label += f"-{given.classes.stem}"
    path = given.out / f"{label}-r{rate:g}-s{seed}-d{given.duration:g}.json"
    if not path.exists():
        if not given.busy:
            wait_until_quiet()
        unfinished = path.with_suffix(".part")
        with server(policy, given.classes) as url:
            subprocess.run(
                [
                    *(*GIUSTO, "bench", "--base-url", url, "--workload", "mixed"),
                    *("--request-rate", str(rate), "--seed", str(seed), "--policy", policy),
                    *("--duration", str(given.duration), "--save-result", str(unfinished)),
                    *("--calibration", str(given.out / "calibration.json")),
                ],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        unfinished.rename(path)
    result = json.loads(path.read_text())
    print(
        f"{policy:<28} rate {rate:<6g} seed {seed:<3} attained {result['attainment']:.3f} of "
        f"{result['offered']}  {classes(result)}  took {result['duration']:.0f} s",
        flush=True,
    )
    return result


def classes(result: dict) -> str:
    return "  ".join(
        f"{name} {figures['attainment']:.2f}"
        for name, figures in result["by_class"].items()
        if name != "all"
    )


def capacity(policy: str, given: argparse.Namespace) -> float:
    """The highest rate at which the mean attainment over the seeds reaches `given.capacity`."""
    low, high = given.between
    while high / low > 1.1:
        rate = round((low * high) ** 0.5, 2)
        reached = mean(cell(policy, rate, seed, given)["attainment"] for seed in given.seed)
        low, high = (rate, high) if reached >= given.capacity else (low, rate)
    return low


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--policy", action="append", help="name or name:option=value+…; then +speculation=MODE"
    )
    parser.add_argument("--rate", type=float, action="append", default=[])
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--duration", type=float, default=300.0)
    parser.add_argument("--capacity", type=float, help="find the rate with this attainment")
    parser.add_argument("--between", type=float, nargs=2, default=(0.5, 8.0))
    parser.add_argument("--out", type=Path, default=Path("results/mixed"))
    parser.add_argument(
        "--classes", type=Path, default=HERE / "mixed.toml", help="classes and their priorities"
    )
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    given = parser.parse_args()
    given.seed = given.seed or [1, 2, 3]
    given.out.mkdir(parents=True, exist_ok=True)
    policies = given.policy or POLICIES
    if given.capacity:
        for policy in policies:
            print(f"{policy}: {given.capacity:.0%} up to {capacity(policy, given):.2f} arrivals/s")
        return
    rows = []
    for rate in given.rate:
        for seed in given.seed:  # seed by seed, so that a drift of the machine meets all policies
            rows += [(p, rate, cell(p, rate, seed, given)) for p in policies]
    print(f"\n{'policy':<28}{'rate':>6}{'attained':>10}   range          gain, of possible")
    for rate in given.rate:
        for policy in policies:
            runs = [run for p, r, run in rows if (p, r) == (policy, rate)]
            reached = [run["attainment"] for run in runs]
            gain = mean(run["service_gain"] / run["service_gain_possible"] for run in runs)
            span = f"{min(reached):.3f} to {max(reached):.3f}"
            print(f"{policy:<28}{rate:>6g}{mean(reached):>10.3f}   {span}{gain:>12.3f}")


if __name__ == "__main__":
    main()
