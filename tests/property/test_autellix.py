"""What programs attain: sums, critical paths, and no service that goes uncharged."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.core.events import Arrived, Finished, Stepped
from giusto.core.latency import BatchShape
from giusto.core.plan import Limits, StepOutcome, Yield
from giusto.core.request import FinishReason, ProgramRef, Request, SamplingParams, Submission
from giusto.policies.autellix import MODES, Autellix
from harness import Drive, policy_named

#: Seconds; sums of it are exact in binary.
TICK = 0.25

runtimes = st.lists(st.integers(1, 20), min_size=1, max_size=8)


def autellix(**options: object) -> Autellix:
    policy, _ = policy_named("autellix", **options)
    assert isinstance(policy, Autellix)
    return policy


@dataclass
class Machine:
    """Runs calls of programs, a random part of the open ones in each tick."""

    policy: Autellix
    draw: random.Random
    now: float = 0.0
    left: dict[str, int] = field(default_factory=dict)
    ran: Counter[str] = field(default_factory=Counter)
    num_promotions: int = 0

    def arrive(self, name: str, program: str, ticks: int, parents: Sequence[str] = ()) -> None:
        ref = ProgramRef(program, name, tuple(parents))
        self.policy.observe(
            Arrived(Request.of(Submission(name, self.now, 8, program=ref)), self.now)
        )
        self.left[name] = ticks

    def tick(self) -> list[str]:
        """Let a step pass; returns who ended with it."""
        served = [name for name in self.left if self.draw.random() < 0.6]
        before = {name: self.policy.queue(name) for name in self.left}
        started, self.now = self.now, self.now + TICK
        yields = dict.fromkeys(served, Yield((1,)))
        outcome = StepOutcome(0, started, self.now, BatchShape(), yields)
        self.policy.observe(Stepped(outcome, self.now))
        self.num_promotions += sum(self.policy.queue(name) < q for name, q in before.items())
        ended = []
        for name in served:
            self.ran[name] += 1
            self.left[name] -= 1
            if not self.left[name]:
                del self.left[name]
                self.policy.observe(Finished(name, self.now, FinishReason.STOP))
                ended.append(name)
        return ended


def execute(
    policy: Autellix, ticks: Mapping[str, int], parents: Mapping[str, Sequence[str]], seed: int
) -> float:
    """Run one program to its end, each call once its parents have ended; what it attained."""
    machine = Machine(policy, random.Random(seed))
    ended: set[str] = set()
    todo = list(ticks)
    while todo or machine.left:
        ready = [name for name in todo if ended.issuperset(parents[name])]
        for name in ready:
            todo.remove(name)
            machine.arrive(name, "p", ticks[name], parents[name])
        ended.update(machine.tick())
    return policy.attained("p")


def critical_path(ticks: Mapping[str, int], parents: Mapping[str, Sequence[str]]) -> float:
    """The longest chain of runtimes, in seconds; calls come after their parents in `ticks`."""
    ends: dict[str, int] = {}
    for name, count in ticks.items():
        ends[name] = count + max((ends[parent] for parent in parents[name]), default=0)
    return TICK * max(ends.values())


@given(runtimes, st.integers(0, 99))
def test_a_sequence_attains_the_sum_by_every_mode(counts: list[int], seed: int) -> None:
    """ATLAS' scalar, the exact path and PLAS' sum agree where no calls overlap."""
    ticks = {f"c{i}": count for i, count in enumerate(counts)}
    parents = {f"c{i}": [f"c{i - 1}"] if i else [] for i in range(len(counts))}
    for mode in MODES:
        assert execute(autellix(mode=mode), ticks, parents, seed) == TICK * sum(counts)


@given(st.lists(runtimes, min_size=1, max_size=4), st.integers(0, 99))
def test_fork_and_join_attain_the_critical_path(layers: list[list[int]], seed: int) -> None:
    """Where each stage waits for all of the one before, the scalar is exact."""
    ticks, parents = {}, {}
    previous: list[str] = []
    for depth, layer in enumerate(layers):
        names = [f"c{depth}.{i}" for i in range(len(layer))]
        ticks.update(zip(names, layer, strict=True))
        parents.update(dict.fromkeys(names, previous))
        previous = names
    for mode in ("atlas", "atlas_exact"):
        attained = execute(autellix(mode=mode), ticks, parents, seed)
        assert attained == critical_path(ticks, parents)
        assert attained == TICK * sum(map(max, layers))


@given(st.integers(1, 12), st.integers(0, 9999))
def test_parents_give_the_critical_path_of_any_graph(num_calls: int, seed: int) -> None:
    """The scalar is no less than it, and PLAS' sum no less than the scalar."""
    draw = random.Random(seed)
    names = [f"c{i}" for i in range(num_calls)]
    ticks = {name: draw.randint(1, 20) for name in names}
    parents = {
        name: draw.sample(names[:i], draw.randint(1, min(i, 3))) if i else []
        for i, name in enumerate(names)
    }
    exact, scalar, total = (
        execute(autellix(mode=mode), ticks, parents, seed)
        for mode in ("atlas_exact", "atlas", "plas")
    )
    assert exact == critical_path(ticks, parents)
    assert exact <= scalar <= total == TICK * sum(ticks.values())


@pytest.mark.parametrize("mode", MODES)
@given(seed=st.integers(0, 9999))
def test_nobody_is_charged_less_than_it_ran(mode: str, seed: int) -> None:
    """However often calls start over; and first calls always enter the first queue."""
    draw = random.Random(seed)
    policy = autellix(mode=mode, beta=draw.choice((0.5, 2.0, 8.0)), queues=draw.randint(1, 7))
    machine = Machine(policy, draw)
    programs: dict[str, list[str]] = {}
    for i in range(60):
        if draw.random() < 0.4:
            program = f"p{draw.randint(0, 1 + i // 8)}"
            name = f"{program}.{i}"
            machine.arrive(name, program, draw.randint(1, 12))
            if program not in programs:
                assert policy.queue(name) == 0
            programs.setdefault(program, []).append(name)
        machine.tick()
    while machine.left:
        machine.tick()
    for program, names in programs.items():
        ran = [TICK * machine.ran[name] for name in names]
        assert max(ran) <= policy.attained(program) <= sum(ran)
        if mode == "plas":
            assert policy.attained(program) == sum(ran)


def test_calls_do_start_over_on_such_loads() -> None:
    """The property above is not empty."""
    machine = Machine(autellix(beta=0.5), random.Random(1))
    for i in range(20):
        machine.arrive(f"c{i}", "p", 4 + i)
    for _ in range(200):
        machine.tick()
    assert machine.num_promotions > 5


# With the scheduler


@dataclass
class Chains:
    """Programs of calls in sequence: the next arrives when the last has ended."""

    calls: dict[str, list[tuple[int, int]]]
    opened: dict[str, float]
    lengths: dict[str, int] = field(default_factory=dict)
    closed: dict[str, float] = field(default_factory=dict)
    served: Counter[str] = field(default_factory=Counter)
    _ready: list[Submission] = field(default_factory=list)
    _ended: set[str] = field(default_factory=set)

    @classmethod
    def drawn(cls, count: int, rate: float, seed: int) -> Chains:
        """One program in six makes twelve calls, the others one or two."""
        draw = random.Random(seed)
        calls, opened, now = {}, {}, 0.0
        for i in range(count):
            now += draw.expovariate(rate)
            length = draw.choice((1, 1, 1, 2, 2, 12))
            sizes = [(draw.randint(30, 150), draw.randint(20, 60)) for _ in range(length)]
            calls[f"p{i}"], opened[f"p{i}"] = sizes, now
        return cls(calls, opened)

    def submission(self, program: str, index: int, now: float) -> Submission:
        prompt, output = self.calls[program][index]
        name = f"{program}.{index}"
        self.lengths[name] = output
        ref = ProgramRef(program, name)
        return Submission(
            name, now, prompt, program=ref, cap=64, sampling=SamplingParams(max_tokens=64)
        )

    def observe(self, event: object) -> None:
        if isinstance(event, Stepped):
            for name in event.outcome.yields.keys() - self._ended:
                self.served[name.partition(".")[0]] += event.outcome.ended - event.outcome.started
        elif isinstance(event, Finished):
            self._ended.add(event.request_id)
            program, _, index = event.request_id.partition(".")
            if int(index) + 1 < len(self.calls[program]):
                self._ready.append(self.submission(program, int(index) + 1, event.now))
            else:
                self.closed[program] = event.now

    def go_on(self, drive: Drive) -> None:
        for ask in self._ready:
            drive.scheduler.add(ask, drive.now)
        self._ready.clear()

    def run(self, name: str, *, lookahead: int = 0, **options: object) -> Autellix:
        """Run to the end on a machine that is too small; returns the policy."""
        policy, lengths = policy_named(name, **options)
        drive = Drive.of(
            policy,
            self.lengths,
            num_blocks=120,
            limits=Limits(256, 8, 16),
            lookahead=lookahead,
            observers=[lengths.observe, self.observe],
            after_step=self.go_on,
        )
        drive.run([self.submission(name, 0, at) for name, at in self.opened.items()])
        assert self.closed.keys() == self.calls.keys()
        return policy

    def mean_response(self, most_calls: int = 99) -> float:
        """Mean seconds from the first call's arrival to the last one's end."""
        spans = [
            self.closed[name] - self.opened[name]
            for name, calls in self.calls.items()
            if len(calls) <= most_calls
        ]
        return sum(spans) / len(spans)


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_programs_attain_the_time_of_their_steps(mode: str, lookahead: int) -> None:
    """Counted from the scheduler's events: each step in full, none twice, none left out."""
    load = Chains.drawn(20, 4.0, seed=1)
    policy = load.run("autellix", mode=mode, lookahead=lookahead)
    for program, seconds in load.served.items():
        assert policy.attained(program) == pytest.approx(seconds)


def test_short_programs_overtake_long_ones() -> None:
    """Under overload they end sooner than first come, first served; so do programs on average."""
    spans = {}
    for name in ("autellix", "fcfs"):
        loads = [Chains.drawn(80, 4.0, seed) for seed in range(2)]
        for load in loads:
            load.run(name)
        spans[name] = [sum(x.mean_response(most) for x in loads) for most in (2, 99)]
    assert spans["autellix"][0] < 0.8 * spans["fcfs"][0]
    assert spans["autellix"][1] < spans["fcfs"][1]
