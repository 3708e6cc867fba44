"""The built-in workload `mixed`: four kinds of users at once, with real prompts.

Of every 20 arrivals 8 are chat streams, 5 tool calls with a deadline, 5 programs of two steps and
2 best effort, in a shuffled order; a program counts as one arrival, though it makes two calls.
Answers end where the model ends them, under the class's cap, and are drawn with a seed per request,
so that their lengths repeat. Each class is promised a multiple of what the idle machine gives it.
"""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import islice, takewhile
from statistics import median

from giusto.core.slo import SLO, BestEffort, Deadline, Delivery, Program, Streaming
from giusto.workload.arrivals import POISSON, Process
from giusto.workload.measured import Counts, measured
from giusto.workload.records import Entry, Message, Step

NAME = "mixed"
DURATION = 300.0
#: Prompts at the head of each pool that only calibration uses, so that a run meets no cache of it.
CALIBRATION_PROMPTS = 6
TEMPERATURE = 0.7
TOP_P = 0.95
#: Cap of a chat's answer in calibration: its pace shows in fewer tokens than its whole answer.
CALIBRATION_CHAT_CAP = 64
#: Seconds that a tool takes between the two steps of a program, drawn evenly.
TOOL_TIME = (0.2, 1.0)

#: class: arrivals of 20, cap on output tokens.
CLASSES: dict[str, tuple[int, int]] = {
    "chat": (8, 256),
    "tool": (5, 64),
    "program": (5, 96),
    "best_effort": (2, 192),
}

TOOL_SYSTEM = "You are called by a program. Answer briefly, without any introduction."
PROGRAM_SYSTEM = "You are an assistant that works through minutes of meetings."
PROGRAM_SECOND = "Now write a short e-mail to the team that says what follows from this."


@dataclass(frozen=True, slots=True)
class ClassTimes:
    """Medians of one class on an idle machine, in seconds; `program` from opening to end."""

    ttft: float
    tpot: float
    e2e: float
    program: float | None = None

    @classmethod
    def of(cls, units: Sequence[Sequence[Delivery]]) -> ClassTimes:
        """Medians over arrivals, each a request or the calls of a program."""
        calls = [call for unit in units for call in unit]
        programs = [
            max(call.arrival + call.e2e for call in unit) - min(call.arrival for call in unit)
            for unit in units
            if len(unit) > 1
        ]
        paces = [call.tpot for call in calls if len(call.token_times) > 1]
        return cls(
            ttft=median(call.ttft for call in calls),
            tpot=median(paces or [0.0]),
            e2e=median(call.e2e for call in calls),
            program=median(programs) if programs else None,
        )


@dataclass(frozen=True, slots=True)
class Load:
    """How much arrives: until `duration` seconds or `count` arrivals, whichever is first."""

    rate: float
    seed: int = 0
    process: Process = POISSON
    duration: float = DURATION
    count: int | None = None


def promises(times: Mapping[str, ClassTimes], scale: float = 3.0) -> dict[str, SLO]:
    """Promise each class `scale` times its median on the idle machine."""
    slos: dict[str, SLO] = {"best_effort": BestEffort()}
    if chat := times.get("chat"):
        # A median TPOT of 0 (answers of one token) promises no pace.
        slos["chat"] = Streaming(chat.ttft * scale, chat.tpot * scale or None)
    if tool := times.get("tool"):
        slos["tool"] = Deadline(tool.e2e * scale)
    if (program := times.get("program")) and program.program is not None:
        slos["program"] = Program(program.program * scale)
    return slos


def entries(load: Load) -> list[Entry]:
    """Generate a run. Contents depend on the seed alone: at any rate the k-th arrival is the same.

    SLOs are left open, for `records.promised` to fill in. The second step of a program follows its
    first in the list.
    """
    if load.count is None and (math.isinf(load.rate) or math.isinf(load.duration)):
        raise ValueError("an endless or instant load needs a count")
    times = load.process.times(load.rate, random.Random(f"{load.seed} arrivals"))
    until = takewhile(lambda now: now <= load.duration, times)
    contents = _contents(random.Random(f"{load.seed} contents"))
    result: list[Entry] = []
    for index, (now, (name, text, rng)) in enumerate(
        zip(islice(until, load.count), contents, strict=False)
    ):
        result += arrival(f"{name}-{index}", name, text, rng, now)
    return result


def counted(entries: Sequence[Entry]) -> list[Entry]:
    """State token counts instead of texts, from the shipped record of what the default model said.

    Each prompt was answered several times; an entry gets one of its prompt's answers, by its seed.
    """
    table = _lengths()
    counts: dict[str, Counts] = {}
    for entry in entries:
        told = [m.content for m in entry.messages if m.role == "user"]
        answers = table[entry.service_class][told[0]]
        if entry.step is None:
            counts[entry.id] = answers[(entry.seed or 0) % len(answers)][0]
            continue
        # Both calls of a program are of one and the same recorded run.
        run = answers[random.Random(entry.step.program + told[0]).randrange(len(answers))]
        counts[entry.id] = run[len(told) - 1]
    return measured(entries, counts)


def calibration() -> dict[str, list[list[Entry]]]:
    """Arrivals of each class with a promise, to be sent one at a time to an idle server."""
    pools = prompts()
    units = {
        name: [
            arrival(f"calibration-{name}-{i}", name, text, random.Random(f"{name} {i}"))
            for i, text in enumerate(pools[name][:CALIBRATION_PROMPTS])
        ]
        for name in CLASSES
        if name != "best_effort"
    }
    for unit in units["chat"]:
        unit[0] = replace(unit[0], max_tokens=CALIBRATION_CHAT_CAP)
    return units


def _contents(rng: random.Random) -> Iterator[tuple[str, str, random.Random]]:
    """Yield class, prompt and a generator of its own for each arrival, for ever."""
    pools = {name: texts[CALIBRATION_PROMPTS:] for name, texts in prompts().items()}
    decks: dict[str, list[str]] = {name: [] for name in pools}
    while True:
        block = [name for name, (share, _) in CLASSES.items() for _ in range(share)]
        rng.shuffle(block)
        for name in block:
            if not decks[name]:
                decks[name] = rng.sample(pools[name], len(pools[name]))
            yield name, decks[name].pop(), random.Random(rng.getrandbits(64))


def arrival(
    name: str, service_class: str, text: str, rng: random.Random, now: float = 0.0
) -> list[Entry]:
    """The calls of one arrival with this prompt, at `now`."""
    if service_class == "program":
        return _program(name, now, text, rng)
    system = (Message("system", TOOL_SYSTEM),) if service_class == "tool" else ()
    return [_entry(name, now, service_class, (*system, Message("user", text)), rng)]


def _program(name: str, now: float, text: str, rng: random.Random) -> list[Entry]:
    asked = (Message("system", PROGRAM_SYSTEM), Message("user", text))
    answered = (*asked, Message("assistant", answer_of="read"), Message("user", PROGRAM_SECOND))
    read = Step(name, "read", stage=0, app="minutes")
    mail = Step(
        name,
        "mail",
        parents=("read",),
        tool_time=rng.uniform(*TOOL_TIME),
        stage=1,
        is_final=True,
        app="minutes",
    )
    return [
        _entry(f"{name}-read", now, "program", asked, rng, read),
        _entry(f"{name}-mail", now, "program", answered, rng, mail),
    ]


def _entry(
    name: str,
    now: float,
    service_class: str,
    messages: tuple[Message, ...],
    rng: random.Random,
    step: Step | None = None,
) -> Entry:
    return Entry(
        id=name,
        arrival=now,
        service_class=service_class,
        messages=messages,
        max_tokens=CLASSES[service_class][1],
        temperature=TEMPERATURE,
        top_p=TOP_P,
        seed=rng.getrandbits(31),
        step=step,
    )


@cache
def _lengths() -> dict[str, dict[str, list[list[Counts]]]]:
    """By pool and prompt: recorded runs, each with prompt and answer tokens of its calls.

    Written by benchmarks/workload/record_lengths.py.
    """
    path = resources.files("giusto.workload") / "data" / "lengths.json.gz"
    rows = json.loads(gzip.decompress(path.read_bytes()))
    return {
        pool: {
            text: [[Counts(*call) for call in run] for run in runs]
            for text, runs in zip(texts, rows[pool], strict=True)
        }
        for pool, texts in prompts().items()
    }


@cache
def prompts() -> dict[str, list[str]]:
    """The shipped prompts by class, in file order."""
    packed = (resources.files("giusto.workload") / "data" / "prompts.jsonl.gz").read_bytes()
    pools: dict[str, list[str]] = {}
    for line in gzip.decompress(packed).splitlines():
        row = json.loads(line)
        pools.setdefault(row["pool"], []).append(row["text"])
    return pools
