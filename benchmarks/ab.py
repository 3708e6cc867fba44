"""Compare two commands in alternation: A B A B …, and print the ratio of a figure, pair by pair.

Each command prints one JSON object on its last line; FIGURE names a number in it.

    python benchmarks/ab.py --figure batch_1_ms --pairs 5 "COMMAND A" "COMMAND B"

Refuses while another process uses more than 20 % of a core.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
from statistics import median

from quiet import wait_until_quiet


def run(command: str) -> dict[str, float]:
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--figure", action="append", help="default: every number in both")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    given = parser.parse_args()
    pairs = []
    for number in range(given.pairs):
        if not given.busy:
            wait_until_quiet()
        pairs.append((run(given.a), run(given.b)))
        print(f"pair {number + 1}: A {pairs[-1][0]}  B {pairs[-1][1]}", flush=True)
    common = pairs[0][0].keys() & pairs[0][1].keys()
    print(f"\n{'figure':<24}{'A':>10}{'B':>10}{'B / A':>8}   range of the ratio")
    for name in given.figure or sorted(common):
        a = [pair[0][name] for pair in pairs]
        b = [pair[1][name] for pair in pairs]
        ratios = sorted(y / x for x, y in zip(a, b, strict=True))
        print(
            f"{name:<24}{median(a):>10.2f}{median(b):>10.2f}{median(ratios):>8.2f}"
            f"   {ratios[0]:.2f} to {ratios[-1]:.2f}"
        )


if __name__ == "__main__":
    main()
