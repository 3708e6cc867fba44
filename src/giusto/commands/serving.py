"""Steps of an engine that serves: beside a server and a client on the same cores, no shape twice.

A grid of steps run over and over in a quiet process tells what they cost at best. Serving, each
prompt has a length that was never computed before, tokens leave for a server between steps, and
its work and the client's take their share of the cores.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from giusto.core.errors import ConfigError
from giusto.core.events import Arrived, Event, Finished, Rejected, Stepped
from giusto.core.latency import BatchShape, LatencyModel
from giusto.engine.settings import EngineSettings
from giusto.profiles.fit import Timing, fit_latency, residuals
from giusto.profiles.profile import Profile

if TYPE_CHECKING:
    from giusto.engine.backend import EmbeddedBackend

#: What an arrival of the built-in workload comes to, roughly, in tokens, and who decodes beside it.
_PROMPT, _ANSWER, _BATCH, _CONTEXT = 200, 150, 8, 300
#: Of what the machine can do, so that steps of many sizes come up but no queue.
_LOAD = 0.6
#: Steps count as of one shape within so many prompt tokens, and tokens of context.
_PREFILL_BIN, _KV_BIN = 32, 512


@dataclass(slots=True)
class Watch:
    """A subscriber that keeps what steps took, and the time between two while somebody waited."""

    steps: list[tuple[BatchShape, float]] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    _ended: float | None = None
    _num_open: int = 0

    @property
    def gap(self) -> float:
        """Seconds between two steps in the median, 0 where there never were two."""
        return median(self.gaps) if self.gaps else 0.0

    def observe(self, event: Event) -> None:
        match event:
            case Stepped(outcome):
                if self._ended is not None:
                    self.gaps.append(outcome.started - self._ended)
                self.steps.append((outcome.shape, outcome.ended - outcome.started))
                self._ended = outcome.ended
            case Arrived():
                self._num_open += 1
            case Finished() | Rejected():
                self._num_open -= 1
                if not self._num_open:
                    self._ended = None  # a rest follows, not a gap

    def timings(self) -> list[Timing]:
        """Steps of about the same shape together, so that common ones do not outweigh the rest."""
        bins: defaultdict[tuple[int, ...], list[tuple[BatchShape, float]]] = defaultdict(list)
        for shape, seconds in self.steps:
            prefill = -(-shape.prefill_tokens // _PREFILL_BIN)
            bins[prefill, shape.decode_seqs, shape.kv_tokens // _KV_BIN].append((shape, seconds))
        return [
            Timing(
                "serving, prompts" if prefill else "serving, decodes",
                _mean([shape for shape, _ in steps]),
                tuple(seconds for _, seconds in steps),
            )
            for (prefill, *_), steps in sorted(bins.items())
        ]


def refit(made: Profile, grid: Sequence[Timing], seen: Watch) -> Profile:
    """The profile with what serving showed: step times, the gap between them, residuals."""
    timings = [*grid, *seen.timings()]
    latency = fit_latency(timings)
    return replace(
        made,
        latency=latency,
        measured=f"{made.measured}; {len(seen.steps)} steps while serving",
        gap=seen.gap,
        residuals=residuals(latency, timings),
    )


def rate_for(latency: LatencyModel) -> float:
    """Arrivals per second of the built-in workload that keep the machine busy for `_LOAD`."""
    decodes = BatchShape(decode_seqs=_BATCH, kv_tokens=_BATCH * _CONTEXT)
    prompt = latency.step_time(BatchShape(prefill_tokens=_PROMPT))
    return _LOAD / (prompt + _ANSWER * latency.step_time(decodes) / _BATCH)


def watch(settings: EngineSettings, rate: float, seconds: float) -> Watch:
    """Serve the built-in workload for so long, as a user would, and tell the steps.

    Raises ConfigError when the client fails, ModelError when the engine does not start.
    """
    return asyncio.run(_watch(replace(settings, scheduling_policy="fcfs"), rate, seconds))


async def _watch(settings: EngineSettings, rate: float, seconds: float) -> Watch:
    from giusto import build
    from giusto.core.clock import WallClock

    seen = Watch()
    failed = await serve_during(
        build.backend(settings, WallClock()), seen.observe, lambda port: _load(port, rate, seconds)
    )
    if failed:
        raise ConfigError("the load client failed: try giusto serve and giusto bench by hand")
    return seen


async def serve_during(
    backend: EmbeddedBackend,
    observe: Callable[[Event], None],
    client: Callable[[int], Coroutine[Any, Any, int]],
) -> int:
    """Serve on a free port until `client`, which is told the port, has ended; its exit code."""
    from giusto.config import ServerSettings
    from giusto.server.app import create_app, make_server

    await backend.start()
    backend.subscribe(observe)
    http = ServerSettings(port=0, log_level="warning")
    server = make_server(create_app(backend, http), http)
    clients: list[asyncio.Task[int]] = []

    async def run(port: int) -> int:
        try:
            return await client(port)
        finally:
            server.should_exit = True

    server.on_ready = lambda port: clients.append(asyncio.create_task(run(port)))
    try:
        await server.serve()
    finally:
        await backend.stop()
    return await clients[0] if clients else 1


async def _load(port: int, rate: float, seconds: float) -> int:
    """Run `giusto bench` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "--base-url": f"http://127.0.0.1:{port}",
            "--workload": "mixed",
            "--request-rate": f"{rate:.3f}",
            "--duration": f"{seconds:g}",
            "--save-result": str(Path(folder) / "result.json"),
        }
        words = [word for flag in flags.items() for word in flag]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "giusto.cli", "bench", *words),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        return await process.wait()


def _mean(shapes: Sequence[BatchShape]) -> BatchShape:
    def mean(name: str) -> int:
        total: int = sum(getattr(shape, name) for shape in shapes)
        return round(total / len(shapes))

    return BatchShape(**{f.name: mean(f.name) for f in fields(BatchShape)})
