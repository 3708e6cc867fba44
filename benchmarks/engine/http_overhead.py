"""Does HTTP work slow the engine's steps? Median gap between steps of 32 decoding requests, in ms.

    python benchmarks/engine/http_overhead.py                       in process, no server
    python benchmarks/engine/http_overhead.py --over process    32 streams over HTTP
    python benchmarks/engine/http_overhead.py --over thread     with the engine in a thread
    python benchmarks/engine/http_overhead.py --over process --queued 200    200 more waiting

Prints one JSON object on its last line, for `benchmarks/ab.py`. The client is a process of its own
on the same machine and only counts bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import replace
from itertools import pairwise
from random import Random
from statistics import median

from giusto import build
from giusto.commands.serving import serve_during
from giusto.core.clock import WallClock
from giusto.core.events import Event, Stepped
from giusto.core.request import SamplingParams, Submission
from giusto.engine.launch import adopt_environment
from giusto.engine.settings import EngineSettings

STREAMS, CONTEXT, TOKENS = 32, 128, 160
SETTINGS = EngineSettings(scheduling_policy="fcfs", prefix_caching=False, max_num_seqs=STREAMS)


def prompt(random: Random) -> list[int]:
    return [random.randrange(100, 20_000) for _ in range(CONTEXT)]


class Gaps:
    """Collects the gaps between steps in which all streams decode and nothing else happens."""

    def __init__(self) -> None:
        self.ends: list[float | None] = []

    def observe(self, event: Event) -> None:
        if isinstance(event, Stepped):
            shape = event.outcome.shape
            is_steady = shape.decode_seqs == STREAMS and not shape.prefill_tokens
            self.ends.append(event.outcome.ended if is_steady else None)

    def median_ms(self) -> float:
        gaps = [b - a for a, b in pairwise(self.ends) if a is not None and b is not None]
        return round(1e3 * median(gaps), 3)


def in_process(settings: EngineSettings) -> float:
    engine, _ = build.engine(settings, WallClock())
    gaps = Gaps()
    engine.scheduler.subscribe(gaps.observe)
    random = Random(0)
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True, seed=0)
    for number in range(STREAMS):
        ids = tuple(prompt(random))
        now = engine.clock.now()
        engine.submit(Submission(str(number), now, CONTEXT, prompt_ids=ids, sampling=sampling))
    while engine.scheduler.has_work:
        engine.step()
    return gaps.median_ms()


async def over_http(settings: EngineSettings, *, isolate: bool, queued: int) -> float:
    gaps = Gaps()
    backend = build.backend(settings, WallClock(), isolate=isolate)
    failed = await serve_during(
        backend, gaps.observe, lambda port: run_client(port, STREAMS + queued)
    )
    if failed:
        raise SystemExit("the client failed")
    return gaps.median_ms()


async def run_client(port: int, streams: int) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--client", str(port), str(streams)
    )
    return await process.wait()


async def read_streams(port: int, streams: int) -> None:
    random = Random(0)
    await asyncio.gather(*(read_stream(port, prompt(random)) for _ in range(streams)))


async def read_stream(port: int, ids: list[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(
        {"prompt": ids, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
    ).encode()
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    received = b""
    while data := await reader.read(1 << 16):
        received = (received + data)[-64:]
    writer.close()
    if b"[DONE]" not in received:
        raise SystemExit(f"a stream broke off: {received!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--over", choices=("process", "thread"))
    parser.add_argument("--queued", type=int, default=0)
    parser.add_argument("--client", nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    adopt_environment()
    if given.client:
        asyncio.run(read_streams(*given.client))
        return
    if given.over:
        isolate = given.over == "process"
        settings = replace(SETTINGS, log_level="warning")
        figure = asyncio.run(over_http(settings, isolate=isolate, queued=given.queued))
    else:
        figure = in_process(SETTINGS)
    print(json.dumps({"step_gap_ms": figure}))


if __name__ == "__main__":
    main()
