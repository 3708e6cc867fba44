"""Record how long the default model's answers to the prompts of `mixed` are.

    python benchmarks/workload/record_lengths.py [--runs 4]

Starts a server, sends every shipped prompt several times with different seeds, and writes token
counts of prompts and answers to src/giusto/workload/data/lengths.json.gz: no text. The simulator
draws from them (`giusto.workload.mixed.counted`).
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import httpx

from giusto.bench.client import Client
from giusto.bench.drive import Driver
from giusto.bench.wire import Dialect, SloIn
from giusto.workload import mixed
from giusto.workload.records import Entry

TARGET = Path(__file__).parents[2] / "src" / "giusto" / "workload" / "data" / "lengths.json.gz"
AT_ONCE = 48


async def record(url: str, runs: int) -> dict[str, list[list[list[list[int]]]]]:
    """Counts by pool, prompt, run and call."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=None) as http:
        start = time.monotonic()
        client = Client(
            http,
            Dialect("SmolLM2-135M-Instruct", SloIn.NONE, run="lengths-"),
            lambda: time.monotonic() - start,
            3600.0,
        )
        table: dict[str, list[list[list[list[int]]]]] = {}
        for pool, texts in mixed.prompts().items():
            units = [
                mixed.arrival(f"{pool}-{index}-{run}", pool, text, Random(f"{pool} {index} {run}"))
                for index, text in enumerate(texts)
                for run in range(runs)
            ]
            counts: dict[str, list[int]] = {}
            for first in range(0, len(units), AT_ONCE):
                batch = [
                    now(entry, client) for unit in units[first : first + AT_ONCE] for entry in unit
                ]
                done = await Driver(client).drive(batch)
                for row in done.records:
                    assert row.is_answered, row
                    counts[row.id] = [row.prompt_tokens, len(row.token_times)]
                print(pool, f"{first + AT_ONCE}/{len(units)}", flush=True)
            rows = [[counts[entry.id] for entry in unit] for unit in units]
            table[pool] = [rows[i : i + runs] for i in range(0, len(rows), runs)]
        return table


def now(entry: Entry, client: Client) -> Entry:
    """The entry at once, its tool instant."""
    step = entry.step and replace(entry.step, tool_time=0.0)
    return replace(entry, arrival=client.now(), step=step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4)
    given = parser.parse_args()
    command = [sys.executable, "-m", "giusto.cli", "serve", "--port", "0", "--log-level", "warning"]
    command += ["--scheduling-policy", "fcfs"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = next(m[0] for line in server.stdout if (m := re.search(r"http://\S+:\d+", line)))
        table = asyncio.run(record(url, given.runs))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    TARGET.write_bytes(gzip.compress(json.dumps(table).encode(), mtime=0))
    print(f"wrote {TARGET.name}")


if __name__ == "__main__":
    main()
