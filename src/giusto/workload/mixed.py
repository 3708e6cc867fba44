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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from itertools import islice, takewhile

from giusto.core.slo import SLO, BestEffort, Deadline, Program, Streaming
from giusto.workload.arrivals import arrivals
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


@dataclass(frozen=True, slots=True)
class Load:
    """How much arrives: until `duration` seconds or `count` arrivals, whichever is first."""

    rate: float
    seed: int = 0
    burstiness: float = 1.0
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
    times = arrivals(load.rate, random.Random(f"{load.seed} arrivals"), burstiness=load.burstiness)
    until = takewhile(lambda now: now <= load.duration, times)
    contents = _contents(random.Random(f"{load.seed} contents"))
    result: list[Entry] = []
    for index, (now, (name, text, rng)) in enumerate(
        zip(islice(until, load.count), contents, strict=False)
    ):
        result += _arrival(f"{name}-{index}", now, name, text, rng)
    return result


def calibration() -> dict[str, list[list[Entry]]]:
    """Arrivals of each class with a promise, to be sent one at a time to an idle server."""
    pools = _pools()
    units = {
        name: [
            _arrival(f"calibration-{name}-{i}", 0.0, name, text, random.Random(f"{name} {i}"))
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
    pools = {name: texts[CALIBRATION_PROMPTS:] for name, texts in _pools().items()}
    decks: dict[str, list[str]] = {name: [] for name in pools}
    while True:
        block = [name for name, (share, _) in CLASSES.items() for _ in range(share)]
        rng.shuffle(block)
        for name in block:
            if not decks[name]:
                decks[name] = rng.sample(pools[name], len(pools[name]))
            yield name, decks[name].pop(), random.Random(rng.getrandbits(64))


def _arrival(
    name: str, now: float, service_class: str, text: str, rng: random.Random
) -> list[Entry]:
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


def _pools() -> dict[str, list[str]]:
    """The shipped prompts by class, in file order."""
    packed = (resources.files("giusto.workload") / "data" / "prompts.jsonl.gz").read_bytes()
    pools: dict[str, list[str]] = {}
    for line in gzip.decompress(packed).splitlines():
        row = json.loads(line)
        pools.setdefault(row["pool"], []).append(row["text"])
    return pools
