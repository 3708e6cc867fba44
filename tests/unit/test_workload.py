"""Arrivals, the workload file, and the built-in load."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections import Counter
from dataclasses import replace
from importlib import resources
from itertools import islice, pairwise
from pathlib import Path
from statistics import mean, stdev

import pytest

from giusto.core.errors import ConfigError
from giusto.core.slo import BestEffort, Deadline, Program, Streaming
from giusto.workload import mixed
from giusto.workload.arrivals import arrivals
from giusto.workload.mixed import ClassTimes, Load
from giusto.workload.records import Entry, Message, Piece, Step, promised, read, write

HELLO = (Message("user", "hello"),)


def gaps(rate: float, burstiness: float, n: int = 20_000) -> list[float]:
    times = islice(arrivals(rate, random.Random(7), burstiness=burstiness), n)
    return [b - a for a, b in pairwise([0.0, *times])]


# Arrivals


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_arrivals_have_the_rate_and_the_spread_asked_for(burstiness: float) -> None:
    """The mean gap is 1 / rate and its coefficient of variation 1 / sqrt(burstiness)."""
    sample = gaps(5.0, burstiness)
    assert mean(sample) == pytest.approx(0.2, rel=0.05)
    assert stdev(sample) / mean(sample) == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_a_seed_fixes_arrivals() -> None:
    """Equal generators give equal times."""
    assert gaps(1.0, 1.0, 50) == gaps(1.0, 1.0, 50)


def test_an_infinite_rate_is_all_at_once() -> None:
    """Everything arrives at 0."""
    assert list(islice(arrivals(math.inf, random.Random(0)), 3)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("rate", "burstiness"), [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, math.inf)]
)
def test_senseless_rates_are_refused(rate: float, burstiness: float) -> None:
    """Zero, negative and undefined values have no process."""
    with pytest.raises(ValueError, match="must be above 0"):
        next(arrivals(rate, random.Random(0), burstiness=burstiness))


# Promises


def test_promises_come_from_the_narrowest_source() -> None:
    """An entry's own SLO, its program's deadline, its class's, else best effort."""
    step = Step("p", "a")
    given = promised(
        [
            Entry("own", 0.0, "chat", HELLO, slo=Deadline(1.0)),
            Entry("class", 0.0, "chat", HELLO),
            Entry("program", 0.0, "agent", HELLO, step=step),
            Entry("stated", 0.0, "agent", HELLO, step=replace(step, deadline=3.0)),
            Entry("none", 0.0, "other", HELLO),
        ],
        {"chat": Streaming(tpot=1.0), "agent": Program(9.0)},
    )
    assert [entry.promise for entry in given] == [
        Deadline(1.0),
        Streaming(tpot=1.0),
        Program(9.0),
        Program(3.0),
        BestEffort(),
    ]


def test_a_program_slo_needs_a_program() -> None:
    """A class with a program's deadline cannot hold a request that is in none."""
    with pytest.raises(ConfigError, match="is in no program"):
        promised([Entry("a", 0.0, "agent", HELLO)], {"agent": Program(1.0)})


# The file


def test_a_workload_survives_its_file(tmp_path: Path) -> None:
    """What is written is read back equal, with every field in use."""
    path = tmp_path / "load.jsonl"
    entries = [
        Entry(
            "a", 1.25, "chat", HELLO, None, 7, (), 99, 12, 0.7, 0.9, 3, Streaming(0.5, 0.25), 2.0
        ),
        Entry("b", 2.0, "tool", prompt="2 + 2 =\u2028", slo=Deadline(3.5), tenant="t"),
        Entry("c", 3.0, prompt_tokens=10, step=Step("p", "c", deadline=60.0, app="x")),
        Entry(
            "d",
            0.0,
            messages=(Message("assistant", answer_of="c"), Message("user", "and?")),
            step=Step("p", "d", ("c",), 0.5, 60.0, 1, True, "x"),
        ),
        Entry("e", 4.0, messages=HELLO, weight=3.0),
        Entry("f", 5.0, prompt_tokens=9, pieces=(Piece("system", 0, 6), Piece("a", 4, 3))),
    ]
    write(path, entries)
    assert read(path) == entries
    assert entries[3].waits_for == ("c",)


def test_a_line_needs_little(tmp_path: Path) -> None:
    """A prompt is enough; empty lines are skipped and nulls are as good as absent."""
    path = tmp_path / "load.jsonl"
    path.write_text('{"prompt": "a", "slo": null}\n\n{"prompt": "b", "slo": {"weight": 2}}\n')
    first, second = read(path)
    assert (first.id, first.promise, first.max_tokens) == ("line-1", BestEffort(), 256)
    assert (second.id, second.weight, second.slo) == ("line-3", 2.0, None)


GOOD = '{"id": "a", "prompt": "x"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "x"', r"load.jsonl line 1, column 15: Expecting"),
        ("[]", r"line 1: expected a JSON object, got list"),
        (GOOD + '{"prompt": 5}', r"line 2, column prompt: expected text, got 5"),
        ('{"promt": "x"}', r"column promt: unknown column, did you mean 'prompt'\?"),
        ("{}", r"column messages: give messages, prompt or"),
        ('{"prompt": "x", "max_token": 5}', r"column max_token: unknown .* 'max_tokens'\?"),
        ('{"prompt": "x", "zzz": 5}', r"column zzz: unknown column$"),
        ('{"prompt": "x", "arrival_s": -1}', r"column arrival_s: must be at least 0, got -1"),
        ('{"prompt": "x", "arrival_s": NaN}', r"column arrival_s: expected a number, got nan"),
        ('{"prompt": "x", "arrival_s": true}', r"column arrival_s: expected a number, got True"),
        ('{"prompt": "x", "max_tokens": 1.5}', r"column max_tokens: expected a whole number"),
        ('{"prompt": "x", "slo": {"ttft_ms": 0}}', r"column slo.ttft_ms: must be above 0"),
        ('{"prompt": "x", "slo": 5}', r"column slo: expected an object"),
        (
            '{"prompt": "x", "slo": {"ttft_ms": 1, "deadline_ms": 1}}',
            r"column slo.deadline_ms: a deadline excludes",
        ),
        ('{"prompt": "x", "slo": {"tpot": 5}}', r"column slo.tpot: .*did you mean 'tpot_ms'\?"),
        ('{"messages": {}, "prompt": "x"}', r"column messages: expected a list, got {}"),
        ('{"messages": 5}', r"column messages: expected a list, got 5"),
        ('{"messages": ["x"]}', r"column messages: expected an object, got 'x'"),
        ('{"messages": [{"content": "x"}]}', r"column messages\[0\].role: is missing"),
        ('{"messages": [{"role": "user"}], "prompt": "x"}', r"column prompt: give either"),
        (
            '{"prompt_tokens": 3, "pieces": [{"source": "s", "tokens": 4}]}',
            r"column pieces: have 4 tokens, prompt_tokens is 3",
        ),
        ('{"prompt": "x", "program": {"id": "p"}}', r"column program.call: is missing"),
        (
            '{"prompt": "x", "program": {"id": "p", "call": "a", "parents": "b"}}',
            r"column program.parents: expected a list of texts",
        ),
        (
            '{"prompt": "x", "program": {"id": "p", "call": "a", "final": 1}}',
            r"column program.final: expected true or false",
        ),
        (
            '{"prompt": "x", "program": {"id": "p", "call": "a", "parents": ["b"]}}',
            r"entry line-1, column program.parents: call 'b' is not among the earlier",
        ),
        (
            '{"messages": [{"role": "user", "answer_of": "b"}]}',
            r"call 'b' is not among the earlier",
        ),
        (
            '{"prompt": "x", "program": {"id": "p", "call": "a"}}\n' * 2,
            r"column program.call: 'a' is there twice",
        ),
        (GOOD + GOOD, r"line 2, column id: 'a' is there twice"),
        ("\n", r"has no entries"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    """Errors say where, which column, and what would be right."""
    path = tmp_path / "load.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read(path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """A missing file and one that is not text say so."""
    with pytest.raises(ConfigError, match=r"cannot read workload .*No such file"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read(tmp_path / "binary")


# The built-in load

TIMES = {
    "chat": ClassTimes(0.1, 0.02, 4.0),
    "tool": ClassTimes(0.1, 0.02, 2.0),
    "program": ClassTimes(0.3, 0.02, 3.0, 7.0),
}


def test_mixed_has_its_shares() -> None:
    """Every 20 arrivals are 8 chats, 5 tool calls, 5 programs and 2 best effort."""
    entries = mixed.entries(Load(rate=2.0, count=100))
    arrived = Counter(e.service_class for e in entries if not e.waits_for)
    assert arrived == {"chat": 40, "tool": 25, "program": 25, "best_effort": 10}
    assert len(entries) == 125


def test_contents_do_not_depend_on_the_rate() -> None:
    """Runs of one seed at two rates ask the same in the same order; another seed does not."""

    def contents(rate: float, seed: int = 0) -> list[Entry]:
        return [replace(e, arrival=0.0) for e in mixed.entries(Load(rate, seed, count=60))]

    assert contents(0.5) == contents(8.0, 0)
    assert contents(0.5) != contents(0.5, seed=1)


def test_duration_and_count_end_the_load() -> None:
    """Whichever comes first; without any end it is an error."""
    entries = mixed.entries(Load(rate=5.0, duration=20.0))
    assert max(entry.arrival for entry in entries) <= 20.0
    assert len({e.arrival for e in entries}) == pytest.approx(100, abs=30)
    assert len(mixed.entries(Load(math.inf, count=4, duration=math.inf))) >= 4
    for load in (Load(1.0, duration=math.inf), Load(math.inf)):
        with pytest.raises(ValueError, match="needs a count"):
            mixed.entries(load)


def test_the_second_step_quotes_the_first() -> None:
    """It waits for the first, has its answer in its prompt, and closes the program."""
    entries = [e for e in mixed.entries(Load(1.0, count=40)) if e.service_class == "program"]
    first, second = entries[:2]
    assert first.step is not None
    assert second.step is not None
    assert second.messages[: len(first.messages)] == first.messages
    assert second.waits_for == second.step.parents == (first.step.call,)
    assert (first.step.is_final, second.step.is_final) == (False, True)
    assert first.step.program == second.step.program
    assert second.step.tool_time > 0


def test_every_request_has_a_seed_of_its_own() -> None:
    """Sampling is drawn with a fixed seed, so lengths repeat."""
    entries = mixed.entries(Load(1.0, count=60))
    assert len({entry.seed for entry in entries}) == len(entries)
    assert {entry.temperature for entry in entries} == {0.7}


def test_slos_are_a_multiple_of_the_idle_machine() -> None:
    """Each class is promised three times its median."""
    assert mixed.promises(TIMES) == {
        "chat": Streaming(0.1 * 3, 0.02 * 3),
        "tool": Deadline(6.0),
        "program": Program(21.0),
        "best_effort": BestEffort(),
    }
    assert mixed.promises({}, 2.0) == {"best_effort": BestEffort()}
    assert mixed.promises({"chat": ClassTimes(0.5, 0.0, 1.0)})["chat"] == Streaming(ttft=1.5)


def test_every_entry_gets_its_promise() -> None:
    """With the calibration in hand nothing but best effort is best effort."""
    entries = promised(mixed.entries(Load(1.0, count=40)), mixed.promises(TIMES))
    idle = {e.service_class for e in entries if isinstance(e.promise, BestEffort)}
    assert idle == {"best_effort"}


def test_calibration_has_prompts_of_its_own() -> None:
    """A run never meets a prompt that calibration has put into the server's cache."""
    units = mixed.calibration()
    assert {name: len(of) for name, of in units.items()} == {"chat": 6, "tool": 6, "program": 6}
    asked = {entry.messages for of in units.values() for unit in of for entry in unit}
    assert not asked & {entry.messages for entry in mixed.entries(Load(1.0, count=600))}


def test_shipped_prompts_are_small_and_attributed() -> None:
    """The package data stays below 300 kB and names the source of each row."""
    data = resources.files("giusto.workload") / "data"
    packed = (data / "prompts.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
    notice = (data / "LICENSES.md").read_text(encoding="utf-8")
    assert len(packed) < 300_000
    assert {row["pool"] for row in rows} == set(mixed.CLASSES)
    assert all(row["source"].split()[0] in notice for row in rows)
    assert max(row["tokens"] for row in rows) < 1200
