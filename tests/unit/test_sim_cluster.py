"""Whole simulated runs: repeatable, complete, honest about what policies know."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import pytest

from giusto import build, routing
from giusto.core.errors import PlanError
from giusto.core.events import Event, Finished
from giusto.core.latency import BatchShape
from giusto.core.plan import Plan, View
from giusto.core.request import FinishReason
from giusto.core.slo import Program
from giusto.policies import REGISTRY
from giusto.sim.cluster import Outcome
from giusto.sim.executor import SimExecutor
from giusto.sim.load import Load
from giusto.sim.run import SimRun, simulate
from giusto.sim.truth import Truth
from giusto.workload import records
from giusto.workload.records import Entry, Piece
from simulated import LATENCY, PROFILE, call, cluster, entry, load, run, settings

HONEST = [name for name, module in REGISTRY.items() if not getattr(module, "IS_ORACLE", False)]


def text(outcome: Outcome) -> str:
    return json.dumps([asdict(record) for record in outcome.records], default=str)


# Complete


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("policy", REGISTRY)
def test_no_request_is_lost(policy: str, lookahead: int, replicas: int) -> None:
    """Every entry has one record that has ended, under every policy, each plan checked."""
    entries = load(40, seed=3, rate=20.0)
    done = run(
        entries, policy=policy, lookahead=lookahead, replicas=replicas, num_blocks=48, seed=5
    )
    assert Counter(record.id for record in done.records) == Counter(e.id for e in entries)
    lengths = {e.id: e.output_tokens for e in entries}
    for record in done.records:
        assert record.closed is not None
        if record.is_answered:
            assert len(record.token_times) == lengths[record.id]
            assert list(record.token_times) == sorted(record.token_times)
            assert record.token_times[-1] == record.closed
        else:
            assert record.refused or record.error
    assert done.ended >= max(record.closed or 0.0 for record in done.records)


@pytest.mark.parametrize("router", routing.ROUTERS)
def test_every_router_serves_everyone(router: str) -> None:
    """Over three replicas with every router, and each replica gets its part."""
    entries = load(60, seed=4, rate=20.0)
    made = cluster(entries, replicas=3, router=router, check=True)
    done = made.run(entries)
    assert len(done.records) == len(entries)
    assert all(record.is_answered for record in done.records)
    assert all(replica.num_steps > 20 for replica in made.replicas)
    assert done.num_steps == sum(replica.num_steps for replica in made.replicas)


def test_records_can_be_streamed() -> None:
    """With a sink nothing is kept, calls that are never sent reach it too."""
    entries = [call("p", "a", prompt=5000), call("p", "b", ("a",)), entry("x", 1.0)]
    seen: list[str] = []
    made = build.cluster(settings(), entries, lambda ended: seen.extend(r.id for r in ended))
    assert made.run(entries).records == []
    assert sorted(seen) == ["p.a", "p.b", "x"]


def test_a_request_larger_than_the_cache_is_refused_at_the_door() -> None:
    """It counts as missed with a reason; the others are served."""
    entries = [entry("huge", 0.0, prompt=PROFILE.num_blocks * 16), entry("small", 0.1)]
    huge, small = run(entries).records
    assert (huge.refused, huge.closed) == ("too_large", 0.0)
    assert small.is_answered


def test_the_cap_cuts_an_answer() -> None:
    """A recorded length beyond the cap ends at the cap."""
    (record,) = run([entry("a", output=100, max_tokens=10)]).records
    assert record.finish is FinishReason.LENGTH
    assert len(record.token_times) == 10


# Repeatable


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("policy", ["giusto", "sjf"])
def test_same_input_same_output(policy: str, lookahead: int) -> None:
    """Byte for byte; another seed of the machine gives other times."""
    entries = load(30, seed=6, rate=15.0)
    runs = [
        text(run(entries, policy=policy, replicas=2, lookahead=lookahead, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_a_whole_result_repeats(tmp_path: Path) -> None:
    """The flat object of figures is the same text when it is made twice, and strict JSON types."""
    path = tmp_path / "load.jsonl"
    records.write(path, load(20, seed=7))

    def result(seed: int) -> str:
        one = SimRun(settings(policy="giusto", seed=seed), Load(str(path), seed=seed), "giusto")
        return json.dumps(simulate(one, build.cluster))

    assert result(1) == result(1) != result(2)


# What steps take


def test_without_noise_steps_take_what_the_profile_says() -> None:
    """One request alone: its prompt's step, then a step per token."""
    (record,) = run([entry("a", 1.0, prompt=40, output=4)], noise=0.0, model_error=0.0).records
    times = [LATENCY.step_time(BatchShape(prefill_tokens=40))]
    times += [LATENCY.step_time(BatchShape(decode_seqs=1, kv_tokens=41 + k)) for k in range(3)]
    expected = [1.0 + sum(times[: k + 1]) for k in range(4)]
    assert record.token_times == pytest.approx(expected, abs=1e-12)


def test_a_faster_machine_is_faster_by_its_factor() -> None:
    """`speed` divides the time of every step."""
    one = [entry("a", 0.0, prompt=40, output=4)]
    slow, fast = (run(one, noise=0.0, speed=speed).records[0] for speed in (1.0, 2.0))
    assert slow.token_times == pytest.approx([2 * at for at in fast.token_times])


def test_a_step_planned_ahead_adds_no_time() -> None:
    """With lookahead 1 an answer has as many tokens at the same times, alone on the machine."""
    one = [entry("a", 0.0, prompt=200, output=9)]
    first, second = (run(one, noise=0.0, lookahead=ahead).records[0] for ahead in (0, 1))
    assert first.token_times == pytest.approx(second.token_times)


def test_the_gap_between_steps_adds_up() -> None:
    """Planning and booking take their time before each step; planned ahead they take none."""
    one = [entry("a", 0.0, prompt=40, output=5)]
    times = {
        (gap, ahead): run(
            one, profile=replace(PROFILE, gap=gap), noise=0.0, lookahead=ahead
        ).records[0]
        for gap in (0.0, 0.002)
        for ahead in (0, 1)
    }
    plain, slow = times[0.0, 0].token_times, times[0.002, 0].token_times
    assert slow == pytest.approx([at + 0.002 * (k + 1) for k, at in enumerate(plain)])
    assert times[0.002, 1].gaps == pytest.approx(times[0.0, 1].gaps)


def test_noise_is_on_the_steps() -> None:
    """With noise the times differ from the profile's, by about as much as was asked for."""
    one = [entry("a", 0.0, prompt=40, output=60)]
    quiet, loud = (run(one, noise=noise).records[0].gaps for noise in (0.0, 0.1))
    ratios = [b / a for a, b in zip(quiet, loud, strict=True)]
    assert 0.05 < sum(abs(ratio - 1) for ratio in ratios) / len(ratios) < 0.15


@pytest.mark.parametrize("speed", [1.0, 0.5])
def test_the_policy_starts_wrong_and_learns(speed: float) -> None:
    """Its model is off by up to a tenth, another share per replica and seed, and comes nearer."""
    shape = BatchShape(decode_seqs=4, kv_tokens=400)
    truth = LATENCY.step_time(shape) / speed
    entries = load(40, seed=8)
    starts = set()
    for seed in range(6):
        made = cluster(entries, seed=seed, replicas=2, noise=0.0, speed=speed)
        models = [replica._latency for replica in made.replicas]
        errors = [model.step_time(shape) / truth - 1 for model in models]
        assert all(abs(error) <= 0.1 + 1e-9 for error in errors)
        starts |= {round(error, 9) for error in errors}
        made.run(entries)
        after = [abs(model.step_time(shape) / truth - 1) for model in models]
        assert all(late <= 0.2 * abs(early) for early, late in zip(errors, after, strict=True))
    assert len(starts) == 12
    assert max(starts) > 0.03
    assert min(starts) < -0.03


def test_the_executor_is_not_the_policys_model() -> None:
    """What the policy learns changes nothing in the true world, and no model is shared."""
    made = cluster([entry("a")], replicas=2)
    models = [model for one in made.replicas for model in (one._latency, one._executor._latency)]
    assert len({id(model) for model in (*models, PROFILE.latency)}) == 5


# Prefixes


def test_a_later_call_hits_what_an_earlier_one_computed() -> None:
    """Prompt and answer of the parent are in the cache, to the last full block."""
    parent = call("p", "a", prompt=100, output=60)
    pieces = (Piece("p.a own", 0, 100), Piece("p.a", 0, 60))
    child = call("p", "b", ("a",), 0.1, prompt=200, pieces=pieces)
    first, second = run([parent, child]).records
    assert first.cached_tokens == 0
    # The last token of an answer is never computed: 159 tokens are nine full blocks.
    assert second.cached_tokens == 159 // 16 * 16
    _, cold = run([parent, child], prefix_caching=False).records
    assert cold.cached_tokens == 0


def test_equal_pieces_are_shared_across_requests() -> None:
    """A system prompt is computed once; who has the same tokens elsewhere shares nothing."""
    system = (Piece("system", 0, 64),)
    entries = [
        entry("a", 0.0, prompt=90, pieces=system),
        entry("b", 1.0, prompt=90, pieces=system),
        entry("c", 2.0, prompt=90, pieces=(Piece("system", 16, 64),)),
    ]
    cached = {record.id: record.cached_tokens for record in run(entries).records}
    assert cached == {"a": 0, "b": 64, "c": 0}


def test_locality_finds_more_in_the_cache_than_round_robin() -> None:
    """Sessions that go back to their replica hit; spread out they mostly miss."""
    entries = []
    for p in range(12):
        turns = [call(f"s{p}", "t0", arrival=0.3 * p, prompt=96, output=16)]
        for k in range(1, 5):
            before = turns[-1]
            pieces = (*before.pieces, Piece(f"{before.id} own", 0, 96), Piece(before.id, 0, 16))
            size = sum(piece.tokens for piece in pieces) + 96
            turns.append(call(f"s{p}", f"t{k}", (f"t{k - 1}",), prompt=size, pieces=pieces))
            turns[-1] = replace(turns[-1], output_tokens=16)
        entries += turns
    hits = {
        router: sum(
            record.cached_tokens
            for record in run(entries, replicas=3, router=router, num_blocks=2000).records
        )
        for router in routing.ROUTERS
    }
    # All that turns 1 to 4 could share: 112 tokens a turn before, to the last full block.
    assert hits["locality"] == 12 * sum((112 * k - 1) // 16 * 16 for k in range(1, 5))
    assert hits["locality"] > 1.3 * hits["round-robin"]
    assert hits["locality"] > hits["least-loaded"]


def test_a_program_is_one_program_on_several_replicas() -> None:
    """Its calls share one opening and one deadline, wherever they are served."""
    calls = [
        call("p", "a", arrival=1.0, deadline=9.0),
        call("p", "b", arrival=2.5, deadline=9.0),
        call("p", "c", ("a",), 0.5, deadline=9.0),
        call("p", "d", ("b", "c"), 0.5, deadline=9.0),
    ]
    made = cluster(calls, replicas=3)
    done = made.run(calls)
    assert sum(replica.num_steps > 0 for replica in made.replicas) == 3
    assert {record.program.opened for record in done.records if record.program} == {1.0}
    assert {record.origin for record in done.records} == {1.0}
    assert {record.slo for record in done.records} == {Program(9.0)}


# What policies know


class Spied:
    """A policy whose plans are kept, with the walk of what it could reach before each."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.plans: list[Plan] = []
        self.has_ended = False

    def plan(self, view: View) -> Plan:
        plan: Plan = self.inner.plan(view)
        if not self.has_ended:
            self.plans.append(plan)
        return plan

    def observe(self, event: Event) -> None:
        self.has_ended |= isinstance(event, Finished)


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("name", HONEST)
def test_hidden_lengths_do_not_show_before_the_first_end(name: str, lookahead: int) -> None:
    """With the lengths permuted among the entries, all plans up to the first finish are equal."""
    entries = [
        replace(one, output_tokens=20 + (one.output_tokens or 0), max_tokens=100)
        for one in load(40, seed=13, rate=60.0)
    ]
    lengths = [one.output_tokens for one in entries]
    random.Random(13).shuffle(lengths)
    permuted = [
        replace(one, output_tokens=length) for one, length in zip(entries, lengths, strict=True)
    ]
    assert permuted != entries
    plans = [plans_until_first_end(name, one, lookahead) for one in (entries, permuted)]
    same = min(map(len, plans))
    assert same > 10
    assert plans[0][:same] == plans[1][:same]


def plans_until_first_end(name: str, entries: list[Entry], lookahead: int) -> list[Plan]:
    made = cluster(entries, policy=name, lookahead=lookahead, num_blocks=80, seed=2)
    (one,) = made.replicas
    spy = Spied(one.scheduler.policy)
    one.scheduler.policy = spy
    one.scheduler.subscribe(spy.observe)
    made.run(entries)
    assert spy.has_ended
    return spy.plans


#: Lengths that are no other number in a run: beyond any count of tokens, blocks or steps in it.
HIDDEN = range(90_001, 90_061)


class Enough(Exception):
    """The walk has seen what it wanted."""


class Walker:
    """Walks from all that a policy is shown; `num_views` views, then stops the run."""

    def __init__(self, inner: Any, num_views: int) -> None:
        self.inner = inner
        self.left = num_views
        self.events: list[Event] = []

    def plan(self, view: View) -> Plan:
        for found in reachable([view, self.inner, self.events]):
            assert not isinstance(found, Truth | Entry | SimExecutor), type(found).__name__
            assert not (isinstance(found, int | float) and found in HIDDEN), found
        self.left -= 1
        if not self.left:
            raise Enough
        return self.inner.plan(view)

    def observe(self, event: Event) -> None:
        self.events.append(event)


@pytest.mark.parametrize("name", HONEST)
def test_no_policy_can_reach_a_length(name: str) -> None:
    """From view, events and itself, attribute by attribute, there is no way to the truth."""
    entries = [
        replace(one, output_tokens=length, max_tokens=100_000)
        for one, length in zip(load(30, seed=14, rate=200.0), HIDDEN, strict=False)
    ]
    made = cluster(entries, policy=name, num_blocks=10_000)
    (one,) = made.replicas
    walker = Walker(one.scheduler.policy, num_views=12)
    one.scheduler.policy = walker
    one.scheduler.subscribe(walker.observe)
    with pytest.raises(Enough):
        made.run(entries)
    assert walker.events


def test_the_walk_finds_an_oracles_truth() -> None:
    """The walk is no blind one: from the policy that is told the truth it gets there."""
    made = cluster([entry("a", output=HIDDEN[0])], policy="srpt-oracle")
    (one,) = made.replicas
    found = list(reachable([one.scheduler.policy]))
    assert any(isinstance(thing, Truth) for thing in found)
    assert HIDDEN[0] in [thing for thing in found if isinstance(thing, int)]


def reachable(roots: Iterable[object]) -> Iterator[object]:
    """All objects that attributes, slots, items and closures lead to; code and classes aside."""
    todo = list(roots)
    seen: dict[int, object] = {}
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type | ModuleType | BuiltinFunctionType):
            continue
        seen[id(thing)] = thing
        yield thing
        if isinstance(thing, str | bytes | int | float | None):
            continue
        todo.extend(neighbours(thing))


def neighbours(thing: Any) -> Iterator[object]:
    if isinstance(thing, MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or ())
        yield from (*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values())
    elif isinstance(thing, dict):
        yield from (*thing.keys(), *thing.values())
    elif isinstance(thing, Iterable) and not isinstance(thing, Iterator | range):
        yield from thing
    yield from vars(thing).values() if hasattr(thing, "__dict__") else ()
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(thing, name):
                yield getattr(thing, name)


IDLE = '''
"""Serves nobody."""
from dataclasses import dataclass
from giusto.core.plan import Plan
@dataclass(frozen=True)
class Parameters:
    pass
class Idle:
    def plan(self, view):
        return Plan(view.step)
    def observe(self, event):
        pass
def make(parameters, deps):
    return Idle()
'''


@pytest.mark.parametrize("check", [True, False])
def test_a_policy_that_serves_nobody_is_an_error(tmp_path: Path, check: bool) -> None:
    """Requests that would wait for ever are no result, whether plans are checked or not."""
    path = tmp_path / "idle.py"
    path.write_text(IDLE)
    with pytest.raises(PlanError, match="wake_at"):
        run([entry("a"), entry("b")], policy=str(path), check=check)


PEEKING = '''
"""Keeps what it is built with."""
from dataclasses import dataclass
from giusto.policies import fcfs
@dataclass(frozen=True)
class Parameters:
    pass
def make(parameters, deps):
    assert deps.truth is None, "told the truth"
    return fcfs.make(fcfs.Parameters(), deps)
'''


def test_only_who_says_it_is_an_oracle_is_told_the_truth(tmp_path: Path) -> None:
    """A policy of one's own that does not say `IS_ORACLE` is built without the lengths."""
    path = tmp_path / "peeking.py"
    path.write_text(PEEKING)
    run([entry("a")], policy=str(path))
