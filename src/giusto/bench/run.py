"""One benchmark from settings to result: probe the server, calibrate, drive, summarize.

Where asked, what was sent is stated in token counts too, for the simulator to replay.
"""

from __future__ import annotations

import difflib
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from giusto.bench import calibrate as calibration
from giusto.bench.client import Client, new_record
from giusto.bench.drive import Driver, Run, Sent
from giusto.bench.progress import Progress
from giusto.bench.results import Result, result
from giusto.bench.wire import Dialect, SloIn, compose
from giusto.core.clock import Clock, WallClock
from giusto.core.errors import ConfigError
from giusto.metrics.records import Record
from giusto.metrics.summary import Goodput, length_of
from giusto.workload import mix, mixed, records
from giusto.workload.arrivals import Process
from giusto.workload.measured import Counts, measured
from giusto.workload.rescale import rescaled, taken

NAMES = (mixed.NAME,)
#: Seconds that a server may take to count the tokens of one prompt.
COUNTING = 10.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What the flags of `giusto bench` say. Times in seconds; None leaves the default."""

    base_url: str = "http://127.0.0.1:8000"
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    workload: str = mixed.NAME
    rate: float | None = None
    burstiness: float = 1.0
    duration: float | None = None
    num_prompts: int | None = None
    seed: int = 0
    goodput: Goodput | None = None
    slo_in: SloIn = SloIn.AUTO
    slo_scale: float = 3.0
    calibration: Path | None = None
    policy: str | None = None
    timeout: float = 600.0
    save_workload: Path | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself."""

    is_giusto: bool
    model: str
    policy: str | None


async def bench(
    settings: Settings,
    *,
    clock: Clock | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    progress: Progress | None = None,
) -> tuple[Result, Run]:
    """Run one benchmark. Raises ConfigError with one sentence when it cannot be run."""
    clock = clock or WallClock()
    progress = progress or Progress()
    headers = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    async with httpx.AsyncClient(
        base_url=settings.base_url.rstrip("/").removesuffix("/v1"),
        headers=headers,
        transport=transport,
        # An open loop needs a connection for every request under way; `Client` limits the time.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
        timeout=httpx.Timeout(None, connect=10.0),
        trust_env=False,
    ) as http:
        server = await probe(http, settings)
        slo_in = settings.slo_in
        if slo_in is SloIn.AUTO:
            slo_in = SloIn.BODY if server.is_giusto else SloIn.NONE
        dialect = Dialect(server.model, slo_in, run=f"{random.SystemRandom().getrandbits(48):x}-")
        times = None

        def client() -> Client:
            start = clock.now()
            return Client(http, dialect, lambda: clock.now() - start, settings.timeout)

        if settings.workload == mixed.NAME:
            times = await _calibration(settings, client(), progress)
        entries = plan(settings, times)
        progress.begin("load", len(entries))
        driver = Driver(client(), on_sent=progress.sent, on_ended=progress.ended)
        run = await driver.drive(entries)
        if settings.save_workload is not None:
            run.sent = await sent(http, server.model, entries, run.records)
    about = _about(settings, server, slo_in, times) | {"num_prompts": len(entries)}
    return result(run, about, settings.goodput), run


async def probe(http: httpx.AsyncClient, settings: Settings) -> Server:
    """Ask the server who it is and what it serves."""
    try:
        version = await http.get("/version")
        models = None if settings.model else await http.get("/v1/models")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(
            f"cannot reach a server at {settings.base_url} ({type(error).__name__}: {error}); "
            "start one with `giusto serve` or give --base-url"
        ) from error
    said = _json(version)
    if models is None:
        model = settings.model or ""
    elif models.status_code in (401, 403):
        raise ConfigError(f"{settings.base_url} wants an API key: give --api-key")
    else:
        served = [row.get("id") for row in _json(models).get("data") or []]
        if not served:
            raise ConfigError(f"{settings.base_url} lists no model: give --model")
        model = str(served[0])
    policy = said.get("scheduling_policy") or said.get("policy")
    return Server(said.get("server") == "giusto", model, str(policy) if policy else None)


def plan(settings: Settings, times: calibration.Times | None) -> list[records.Entry]:
    """The entries of the run, each with its promise."""
    if settings.workload == mixed.NAME:
        assert times is not None
        if settings.num_prompts is None and math.isinf(settings.rate or 0.0):
            raise ConfigError("an infinite --request-rate needs --num-prompts")
        load = mixed.Load(
            rate=1.0 if settings.rate is None else settings.rate,
            seed=settings.seed,
            process=Process("gamma", settings.burstiness),
            duration=_duration(settings),
            count=settings.num_prompts,
        )
        return records.promised(mixed.entries(load), mixed.promises(times, settings.slo_scale))
    return _from_file(settings)


def find_workload(name: str) -> str | Path:
    """A built-in name or an existing file; ConfigError names the nearest built-in one."""
    if name in NAMES:
        return name
    if Path(name).is_file():
        return Path(name)
    if name in mix.MIXES:
        raise ConfigError(
            f"workload {name!r} has token counts only, for `giusto simulate`; a server needs text: "
            f"give {mixed.NAME!r} or a file"
        )
    near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"built in: {', '.join(NAMES)}"
    raise ConfigError(f"no workload and no file {name!r}; {hint}")


def _from_file(settings: Settings) -> list[records.Entry]:
    """A file keeps its own arrival times unless a rate is given, which draws others."""
    entries = records.read(Path(find_workload(settings.workload)))
    for entry in entries:
        if not entry.messages and entry.prompt is None:
            raise ConfigError(
                f"entry {entry.id} of {settings.workload} has token counts only, for `giusto "
                "simulate`; a server needs text: give messages or prompt"
            )
    if settings.rate is not None:
        entries = rescaled(
            entries,
            settings.rate,
            rng=random.Random(f"{settings.seed} arrivals"),
            is_timed=False,
            process=Process("gamma", settings.burstiness),
        )
    return taken(entries, duration=settings.duration, count=settings.num_prompts)


async def sent(
    http: httpx.AsyncClient,
    model: str,
    entries: Sequence[records.Entry],
    ended: Sequence[Record],
) -> Sent:
    """What of `entries` was sent, when it left, and how many tokens the server counted.

    An answer that was refused, cut off or never asked for has the median length of its class, and
    not less than what came of it. A prompt whose length no answer told is counted by the server's
    `/tokenize`, with the lengths of earlier answers in place of their texts; where it has none the
    entry is left out with its program. What an interrupted run did not reach was not sent.
    """
    by_id = {record.id: record for record in ended}
    length = length_of(ended)
    counts: dict[str, Counts] = {}
    answers: dict[tuple[str, str], int] = {}
    uncounted: set[str] = set()
    reached = [replace(e, arrival=by_id[e.id].arrival) for e in entries if e.id in by_id]
    for entry in reached:
        record = by_id[entry.id]
        output = len(record.token_times)
        if not record.is_answered:
            output = max(output, min(round(length(record)[0]), entry.max_tokens))
        if entry.step is not None:
            answers[entry.step.program, entry.step.call] = output
        prompt: int | None = record.prompt_tokens
        if prompt == new_record(entry, 0.0, None).prompt_tokens:  # the client's own rough guess
            prompt = await _prompt_tokens(http, model, entry, answers)
        if prompt is None:
            uncounted.add(_unit(entry))
        else:
            counts[entry.id] = Counts(prompt, output)
    kept = measured([e for e in reached if _unit(e) not in uncounted], counts)
    num_estimated = sum(not by_id[entry.id].is_answered for entry in kept)
    return Sent(kept, num_estimated, len(reached) - len(kept))


async def _prompt_tokens(
    http: httpx.AsyncClient,
    model: str,
    entry: records.Entry,
    answers: Mapping[tuple[str, str], int],
) -> int | None:
    """The server's count of a prompt; None from a server that does not count."""
    body = compose(entry, defaultdict(str), Dialect(model, SloIn.NONE)).body
    asked = {key: body[key] for key in ("model", "messages", "prompt") if key in body}
    try:
        count = _json(await http.post("/tokenize", json=asked, timeout=COUNTING)).get("count")
    except httpx.HTTPError:
        return None
    if not isinstance(count, int):
        return None
    program = entry.step.program if entry.step is not None else ""
    quoted = (m.answer_of for m in entry.messages if m.answer_of is not None)
    return count + sum(answers[program, call] for call in quoted)


def _unit(entry: records.Entry) -> str:
    """What stays whole: a program, or a request that is in none."""
    return f"request {entry.id}" if entry.step is None else f"program {entry.step.program}"


async def _calibration(settings: Settings, client: Client, progress: Progress) -> calibration.Times:
    """Load the calibration where there is one, else measure it, and keep it where asked."""
    path = settings.calibration
    if path is not None and path.exists():
        return calibration.load(path)
    arrivals_by_class = mixed.calibration()
    progress.begin("calibration", sum(len(units) for units in arrivals_by_class.values()))
    times = await calibration.calibrate(client, arrivals_by_class, progress.advance)
    if path is not None:
        calibration.save(path, times)
    return times


def _duration(settings: Settings) -> float:
    if settings.duration is not None:
        return settings.duration
    return mixed.DURATION if settings.num_prompts is None else math.inf


def _about(
    settings: Settings, server: Server, slo_in: SloIn, times: calibration.Times | None
) -> dict[str, Any]:
    """What the run was; the keys that vLLM writes have its names."""
    rate = settings.rate
    if rate is None:
        rate = 1.0 if times else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": "giusto" if server.is_giusto else "openai",
        "policy": settings.policy or server.policy,
        "model_id": server.model,
        "workload": settings.workload,
        "request_rate": "inf" if rate is not None and math.isinf(rate) else rate,
        "burstiness": settings.burstiness,
        "duration_asked": settings.duration,
        "num_prompts_asked": settings.num_prompts,
        "seed": settings.seed,
        "slo_in": slo_in.value,
        "slo_scale": settings.slo_scale if times else None,
        "calibration": calibration.to_json(times) if times else None,
    }


def _json(response: httpx.Response) -> dict[str, Any]:
    """The object of a successful answer; empty for anything else."""
    if response.status_code != 200:
        return {}
    try:
        content = response.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
