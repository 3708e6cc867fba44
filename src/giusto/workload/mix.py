"""Mixes of service classes without text, and the built-in ones by name.

A class says how long its prompts and answers are, under which cap, and what it is promised; a
program class says which agent makes its calls. Drawn lengths go to `output_tokens`, which only
executors see; the cap is the class's. No promise depends on a drawn length either: a deadline
that did would tell it to every policy that orders by deadlines.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Protocol

from giusto.core.errors import ConfigError
from giusto.core.slo import SLO, Deadline, Streaming
from giusto.workload import tempo_mix
from giusto.workload.agents import AGENTS, Agent, critical_path
from giusto.workload.arrivals import POISSON, Process
from giusto.workload.lengths import Lengths, LogNormal
from giusto.workload.mixed import DURATION
from giusto.workload.records import Entry

#: Tokens of the prompt that stands for an idle machine's time to a first token.
TYPICAL = 256


@dataclass(frozen=True, slots=True)
class Unit:
    """What an idle machine gives one request: seconds to its first token, then per token.

    `ttft` is that of a prompt of `TYPICAL` tokens or fewer. The default pace is the unit of
    AdaServe's SLOs for Llama-3.1-70B on four A100, 30 ms; 28 ms is that for Qwen2.5-32B on two.
    """

    ttft: float = 0.2
    tpot: float = 0.03

    def first(self, prompt_tokens: float) -> float:
        """Seconds to the first token after a prompt of this length."""
        return self.ttft * max(1.0, prompt_tokens / TYPICAL)

    def at_cap(self, entry: Entry) -> float:
        """Seconds of a call that uses its whole cap.

        Its prompt is not counted: it quotes earlier answers, whose lengths must not show.
        """
        return self.ttft + (entry.max_tokens - 1) * self.tpot


UNIT = Unit()


class Arriving(Protocol):
    """A kind of arrival: `share` of all arrivals, relative to the other kinds' shares."""

    @property
    def name(self) -> str: ...
    @property
    def share(self) -> float: ...
    def arrive(self, name: str, now: float, rng: random.Random) -> list[Entry]: ...


@dataclass(frozen=True, slots=True)
class ServiceClass:
    """Single requests of one kind: `share` of arrivals relative to the other classes' shares.

    Answers are cut at `cap` tokens. Without an SLO the class is best effort.
    """

    name: str
    share: float
    prompt: Lengths
    output: Lengths
    cap: int
    slo: SLO | None = None
    weight: float = 1.0
    tenant: str = ""

    def arrive(self, name: str, now: float, rng: random.Random) -> list[Entry]:
        """Draw one request; `name` is its id."""
        return [
            Entry(
                id=name,
                arrival=now,
                service_class=self.name,
                prompt_tokens=self.prompt.draw(rng),
                max_tokens=self.cap,
                output_tokens=min(self.output.draw(rng), self.cap),
                slo=self.slo,
                weight=self.weight,
                tenant=self.tenant,
            )
        ]


@dataclass(frozen=True, slots=True)
class ProgramClass:
    """Programs of one kind, each of which counts as one arrival.

    A program's deadline is `factor` times its critical path on the idle machine with every answer
    at its cap, tools included. For the agents here that is about three times the path that they
    take with the lengths drawn.
    """

    name: str
    share: float
    agent: Agent
    factor: float = 1.0
    unit: Unit = UNIT
    weight: float = 1.0
    tenant: str = ""

    def arrive(self, name: str, now: float, rng: random.Random) -> list[Entry]:
        """Draw one program; `name` is its id."""
        calls = self.agent(name, now, rng)
        deadline = self.factor * critical_path(calls, self.unit.at_cap)
        return [
            replace(
                call,
                service_class=self.name,
                weight=self.weight,
                tenant=self.tenant,
                step=call.step and replace(call.step, deadline=deadline),
            )
            for call in calls
        ]


@dataclass(frozen=True, slots=True)
class Mix:
    """Classes and their shares of arrivals."""

    classes: tuple[Arriving, ...]

    def __post_init__(self) -> None:
        if not self.classes or not all(0 < c.share < math.inf for c in self.classes):
            raise ValueError("a mix needs classes, each with a share above 0")


def generate(mix: Mix, times: Iterable[float], rng: random.Random) -> list[Entry]:
    """Let a class of the mix arrive at each of `times`.

    Contents do not depend on the times: the k-th arrival is the same at any rate.
    """
    shares = [service_class.share for service_class in mix.classes]
    entries: list[Entry] = []
    for index, now in enumerate(times):
        (chosen,) = rng.choices(mix.classes, shares)
        own = random.Random(rng.getrandbits(64))
        entries += chosen.arrive(f"{chosen.name}-{index}", now, own)
    return entries


def build(  # noqa: PLR0913  three of them by keyword only
    name: str,
    rate: float,
    seed: int = 0,
    duration: float | None = None,
    *,
    count: int | None = None,
    unit: Unit = UNIT,
    process: Process = POISSON,
) -> list[Entry]:
    """Generate a built-in mix: `rate` arrivals per second for `duration` seconds, `count` at most.

    None is the mix's own duration. Promises are multiples of `unit`, but for `tempo-mix`. Raises
    ConfigError when there is no mix of that name, or the load has no end.
    """
    if name not in MIXES:
        raise ConfigError(f"no workload {name!r}; there are {', '.join(MIXES)}")
    if duration is None:
        duration = DURATIONS.get(name, DURATION)
    if count is None and (math.isinf(rate) or math.isinf(duration)):
        raise ConfigError(f"workload {name!r} needs a finite rate and duration, or a count")
    times = process.times(rate, random.Random(f"{seed} arrivals"))
    until = takewhile(lambda now: now <= duration, times)
    return generate(MIXES[name](unit), islice(until, count), random.Random(f"{seed} contents"))


#: ShareGPT: prompts of 112 tokens in the median and 856 at p95, answers of 147 and 764; the
#: source ends prompts at 1,024.
CHAT_PROMPT = LogNormal(112, 856, high=1_024)
CHAT_OUTPUT = LogNormal(147, 764)
#: Azure's code trace of 2023: 1,465 and 7,168 in, 13 and 88 out.
CODE_PROMPT = LogNormal(1_465, 7_168, high=8_192)
CODE_OUTPUT = LogNormal(13, 88)
#: Summaries of arXiv papers: 2,729 and 3,814 in, 167 and 715 out.
DOCUMENT_PROMPT = LogNormal(2_729, 3_814, high=4_096)
DOCUMENT_OUTPUT = LogNormal(167, 715)
#: Azure's conversation trace of 2023: 1,015 and 4,085 in, 115 and 448 out.
TASK_PROMPT = LogNormal(1_015, 4_085, high=8_192)
TASK_OUTPUT = LogNormal(115, 448)


def _chat(unit: Unit, share: float = 1.0, tenant: str = "") -> ServiceClass:
    """Streams whose first token may take 5 units and the others 2.

    With the default unit 1 s and 60 ms; AdaServe promises 50 ms to chats.
    """
    slo = Streaming(5 * unit.ttft, 2 * unit.tpot)
    return ServiceClass("chat", share, CHAT_PROMPT, CHAT_OUTPUT, 1_024, slo, tenant=tenant)


def _code(unit: Unit, share: float) -> ServiceClass:
    """Completions in an editor: a tighter pace over long prompts.

    The first token may take twice what the idle machine needs for a prompt at p95.
    """
    slo = Streaming(2 * unit.first(CODE_PROMPT.p95), 1.5 * unit.tpot)
    return ServiceClass("code", share, CODE_PROMPT, CODE_OUTPUT, 256, slo)


def _task(unit: Unit, share: float) -> ServiceClass:
    """Answers that a program waits for as a whole: the idle machine's time for a full cap.

    With the default unit 18.6 s, a prompt at p95 included; Tempo gives 20 s.
    """
    slo = Deadline(unit.first(TASK_PROMPT.p95) + 512 * unit.tpot)
    return ServiceClass("task", share, TASK_PROMPT, TASK_OUTPUT, 512, slo)


def _batch(share: float) -> ServiceClass:
    """Summaries that nobody waits for."""
    return ServiceClass("batch", share, DOCUMENT_PROMPT, DOCUMENT_OUTPUT, 1_024)


def _chat_mix(unit: Unit) -> Mix:
    """Streams only."""
    return Mix((_chat(unit),))


def _interactive_batch(unit: Unit) -> Mix:
    """Streams, and three best-effort summaries for every seven of them."""
    return Mix((_chat(unit, 7), _batch(3)))


def _tenants(unit: Unit) -> Mix:
    """Four tenants that chat alike, of whom the last sends five times as much as each other."""
    shares = {"ada": 1, "bela": 1, "carl": 1, "flood": 5}
    return Mix(tuple(_chat(unit, share, tenant) for tenant, share in shares.items()))


def _slo_mix(unit: Unit) -> Mix:
    """Streams at two paces, deadlines and best effort: 8, 4, 5 and 3 of 20."""
    return Mix((_chat(unit, 8), _code(unit, 4), _task(unit, 5), _batch(3)))


def _tempo_mix(unit: Unit) -> Mix:
    """Streams, deadlines, programs and best effort; its promises are absolute."""
    return Mix(tempo_mix.CLASSES)


def _agents(unit: Unit) -> Mix:
    """Of 20 arrivals 15 chats and one program of each agent; programs make most of the calls."""
    programs = (ProgramClass(name, 1, agent, unit=unit) for name, agent in AGENTS.items())
    return Mix((_chat(unit, 15), *programs))


MIXES: dict[str, Callable[[Unit], Mix]] = {
    "chat": _chat_mix,
    "interactive-batch": _interactive_batch,
    "tenants": _tenants,
    "slo-mix": _slo_mix,
    "agents": _agents,
    tempo_mix.NAME: _tempo_mix,
}

#: Seconds of arrivals of the mixes that say so themselves; the others have `DURATION`.
DURATIONS = {tempo_mix.NAME: tempo_mix.DURATION}
#: Seconds from the start whose arrivals are served but not counted; the others count all.
WARMUPS = {tempo_mix.NAME: tempo_mix.WARMUP}
