"""Who sends what and when: an open loop, and the calls of programs after their parents."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from giusto.bench.client import Reply, new_record
from giusto.bench.drive import Driver
from giusto.core.errors import ConfigError
from giusto.core.events import Finished, Rejected
from giusto.core.request import FinishReason, Reason
from giusto.core.slo import Program, Streaming
from giusto.metrics.records import Record
from giusto.sim.asks import Asks, Terms
from giusto.sim.kernel import Kernel, Order
from giusto.sim.users import Users, never_sent
from giusto.workload.records import Entry, Piece
from simulated import call, entry
from virtual_time import VirtualLoop, run


class World:
    """A server that takes `seconds` for each request and fails those that are named."""

    def __init__(
        self, entries: Sequence[Entry], seconds: dict[str, float], fails: Sequence[str] = ()
    ) -> None:
        self.kernel = Kernel()
        self.sent: list[tuple[str, float]] = []
        self.given_up: list[Record] = []
        self._seconds = seconds
        self._fails = fails
        self._users = Users(self.kernel, entries, self._send, self._give_up)
        self.kernel.run()

    def _send(self, entry: Entry) -> None:
        now = self.kernel.now
        self.sent.append((entry.id, now))
        ends = now + self._seconds.get(entry.id, 1.0)
        self.kernel.at(ends, Order.END, lambda: self._end(entry.id))

    def _give_up(self, entry: Entry, opened: float) -> None:
        now = self.kernel.now
        self.given_up.append(never_sent(Asks({}).ask(entry, now), entry, now, opened))

    def _end(self, name: str) -> None:
        now = self.kernel.now
        if name in self._fails:
            self._users.observe(Rejected(name, now, Reason.QUEUE_FULL))
        else:
            self._users.observe(Finished(name, now, FinishReason.STOP))


def world(*entries: Entry, fails: Sequence[str] = (), **seconds: float) -> World:
    return World(entries, {name.replace("_", "."): s for name, s in seconds.items()}, fails)


# Sending


def test_arrivals_wait_for_nobody() -> None:
    """Requests leave at their time in order of arrival, however slow the server is."""
    made = world(entry("late", 3.0), entry("a", 1.0), entry("b", 1.0), a=100.0)
    assert made.sent == [("a", 1.0), ("b", 1.0), ("late", 3.0)]


def test_a_call_leaves_when_its_parent_has_ended_and_its_tool_has_run() -> None:
    """Its own arrival does not matter."""
    made = world(call("p", "a", arrival=2.0), call("p", "b", ("a",), 0.5, arrival=9.0), p_a=3.0)
    assert made.sent == [("p.a", 2.0), ("p.b", 5.5)]


def test_fan_out_and_fan_in() -> None:
    """Children of one parent leave together; who has several parents waits for the last."""
    made = world(
        call("p", "a"),
        call("p", "b", ("a",)),
        call("p", "c", ("a",), 1.0),
        call("p", "d", ("b", "c"), 0.25),
        p_b=5.0,
    )
    assert made.sent == [("p.a", 0.0), ("p.b", 1.0), ("p.c", 2.0), ("p.d", 6.25)]
    assert made.given_up == []


def test_programs_do_not_mix() -> None:
    """Calls of one name in two programs wait for their own parents."""
    calls = (call("p", "a"), call("p", "b", ("a",)), call("q", "a"), call("q", "b", ("a",)))
    made = world(*calls, p_a=4.0, fails=["q.a"])
    assert made.sent == [("p.a", 0.0), ("q.a", 0.0), ("p.b", 4.0)]
    assert [record.id for record in made.given_up] == ["q.b"]


# Calls that are never sent


def test_children_of_a_failed_call_are_never_sent() -> None:
    """They and their children are booked as failed at once; others of the program go on."""
    made = world(
        call("p", "a"),
        call("p", "x"),
        call("p", "b", ("a",)),
        call("p", "c", ("b",)),
        call("p", "y", ("x",)),
        fails=["p.a"],
    )
    assert [name for name, _ in made.sent] == ["p.a", "p.x", "p.y"]
    assert [(r.id, r.arrival, r.closed) for r in made.given_up] == [
        ("p.b", 1.0, 1.0),
        ("p.c", 1.0, 1.0),
    ]
    assert {r.finish for r in made.given_up} == {FinishReason.ERROR}
    assert {r.error for r in made.given_up} == {"not sent: an earlier call failed"}


def test_a_call_is_given_up_when_all_its_parents_have_ended() -> None:
    """As with the live client: a failed parent does not end the wait for the others."""
    calls = (call("p", "a"), call("p", "b"), call("p", "c", ("a", "b")))
    made = world(*calls, p_a=1.0, p_b=7.0, fails=["p.a"])
    assert [(r.id, r.closed) for r in made.given_up] == [("p.c", 7.0)]


def test_a_program_opens_with_its_first_root_even_at_zero() -> None:
    """The second root of a program does not open it again."""
    calls = (call("p", "a"), call("p", "b", arrival=5.0), call("p", "c", ("b",)))
    made = world(*calls, fails=["p.b"])
    (record,) = made.given_up
    assert record.program is not None
    assert record.program.opened == 0.0
    assert record.origin == 6.0


CALLS = (
    call("p", "a", arrival=0.5, deadline=9.0),
    call("p", "b", arrival=2.0, deadline=9.0, tenant="t"),
    call("p", "c", ("a", "b"), 1.0, deadline=9.0, prompt=77, weight=2.0),
    call("p", "d", ("c",), 1.0, deadline=9.0, slo=Streaming(1.0, 0.1)),
    call("p", "e", ("a",), 0.5, deadline=9.0),
    call("q", "a", arrival=3.0),
    call("q", "b", ("a",)),
    entry("single", 1.5),
)


class FakeClient:
    """Answers after one second of the loop's time, or fails."""

    def __init__(self, fails: Sequence[str]) -> None:
        self._fails = fails
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()

    def now(self) -> float:
        return self._loop.time() - self._start

    async def send(self, entry: Entry, answers: dict[str, str], opened: float | None) -> Reply:
        record = new_record(entry, self.now(), opened)
        await asyncio.sleep(1.0)
        is_failed = entry.id in self._fails
        finish = FinishReason.ERROR if is_failed else FinishReason.STOP
        return Reply(replace(record, closed=self.now(), finish=finish))


@pytest.mark.parametrize("fails", [("p.a",), ("p.b",), ("p.a", "q.a"), ("p.c",), ()])
def test_books_what_the_live_client_books(fails: tuple[str, ...]) -> None:
    """The calls that are never sent have the same records, sent ones leave at the same times."""
    made = World(CALLS, {}, fails)

    async def drive() -> list[Record]:
        return (await Driver(FakeClient(fails)).drive(CALLS)).records

    live = run(VirtualLoop(), drive())
    unsent = {r.id: r for r in live if r.error}
    assert {r.id: rounded(r) for r in made.given_up} == {k: rounded(r) for k, r in unsent.items()}
    left = {r.id: round(r.arrival, 6) for r in live if not r.error}
    assert {name: round(at, 6) for name, at in made.sent} == left


def rounded(record: Record) -> Record:
    closed = None if record.closed is None else round(record.closed, 6)
    program = record.program
    if program is not None:
        program = replace(program, opened=round(program.opened, 6))
    return replace(
        record,
        arrival=round(record.arrival, 6),
        origin=round(record.origin, 6),
        closed=closed,
        program=program,
    )


# What a request looks like to the scheduler


def test_the_cap_is_the_classes() -> None:
    """The operator's, or the entry's where that is larger; never the hidden length."""
    one = entry("a", max_tokens=64, output=7)
    assert Asks().ask(one, 3.0).cap == 2048
    assert Asks({"default": Terms(cap=32)}).ask(one, 3.0).cap == 64
    assert Asks({"default": Terms(cap=512)}).ask(one, 3.0).cap == 512
    asked = Asks().ask(one, 3.0)
    assert (asked.arrival, asked.sampling.max_tokens) == (3.0, 64)
    assert asked == Asks().ask(replace(one, output_tokens=50), 3.0)


def test_the_operators_weight_and_priority_count() -> None:
    """A class's weight multiplies the entry's own."""
    asks = Asks({"batch": Terms(weight=0.5, priority=3)})
    asked = asks.ask(entry("a", service_class="batch", weight=4.0, tenant="t"), 0.0)
    assert (asked.weight, asked.priority, asked.tenant) == (2.0, 3, "t")
    assert asks.ask(entry("b"), 0.0).priority == 0


def test_a_call_is_judged_with_its_program_unless_it_has_its_own_slo() -> None:
    """As on the server: `has_own_slo` says which."""
    asks = Asks()
    with_program = asks.ask(call("p", "a", deadline=5.0), 0.0)
    own = asks.ask(call("p", "b", ("a",), deadline=5.0, slo=Streaming(1.0)), 0.0)
    assert (with_program.slo, with_program.has_own_slo) == (Program(5.0), False)
    assert (own.slo, own.has_own_slo) == (Streaming(1.0), True)
    assert own.program is not None
    assert (own.program.id, own.program.parents, own.program.deadline) == ("p", ("a",), 5.0)


def test_tokens_are_places_in_texts() -> None:
    """What two prompts share has equal tokens, what is their own has not."""
    asks = Asks()
    shared = (Piece("system", 0, 10),)
    a, b = (asks.ask(entry(name, prompt=16, pieces=shared), 0.0).prompt_ids for name in "ab")
    later = asks.ask(entry("c", prompt=16, pieces=(Piece("system", 4, 6),)), 0.0).prompt_ids
    assert a[:10] == b[:10]
    assert later[:6] == a[4:10]
    assert not {*a[10:]} & {*b[10:], *later[6:]}
    assert len(a) == len(b) == len(later) == 16
    assert Asks(has_text=False).ask(entry("a"), 0.0).prompt_ids == ()


def test_a_text_without_a_count_is_refused() -> None:
    """The simulator has no tokenizer."""
    with pytest.raises(ConfigError, match="entry a has a text but no prompt_tokens"):
        Asks().ask(Entry("a", 0.0, prompt="Hello"), 0.0)
