"""Literal views that need no scheduler, loads for the harness, and strategies that draw both."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import strategies as st

from giusto.core.pack import Budget
from giusto.core.plan import BlockCost, Caps, Limits, Pin, ProgramView, Spec, Want
from giusto.core.request import ProgramRef, Request, SamplingParams, Submission
from giusto.core.slo import SLO, BestEffort, Deadline, Streaming

BLOCK = 4


@dataclass(frozen=True)
class Hit:
    """A cached prefix of a waiting request: its blocks, and how many nobody or one holds."""

    blocks: int = 0
    unheld: int = 0
    sole: int = 0


@dataclass
class LiteralView:
    """A `plan.View` written down: who runs, who waits, what is free; blocks as counts."""

    running: Sequence[Request] = ()
    waiting: Sequence[Request] = ()
    free_blocks: int = 100
    limits: Limits = field(default_factory=lambda: Limits(64, 8, BLOCK))
    pin: Pin | None = None
    now: float = 10.0
    step: int = 7
    caps: Caps = field(default_factory=lambda: Caps(token_trees=True))
    hits: dict[str, Hit] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    swapped: Sequence[Request] = ()
    free_host_blocks: int = 0
    asked: list[str] = field(default_factory=list)

    @property
    def unanswered(self) -> list[Request]:
        """Found by going through the line: what the queue keeps at hand."""
        first: dict[float | None, Request] = {}
        for each in self.waiting:
            if each.first_token is None:
                span = each.slo.starvation if isinstance(each.slo, BestEffort) else None
                first.setdefault(span, each)
        return list(first.values())

    @property
    def free_slots(self) -> int:
        return max(0, self.limits.max_num_seqs - len(self.running))

    def request(self, request_id: str) -> Request:
        return {r.id: r for r in (*self.running, *self.waiting)}[request_id]

    def program(self, program_id: str) -> ProgramView | None:
        return None

    def held(self, request_id: str) -> int:
        request = self.request(request_id)
        return _blocks(request.num_computed_tokens + request.num_in_flight_tokens)

    def freeable(self, request_id: str) -> int:
        if self.request(request_id).num_in_flight_tokens:
            return 0
        return self.held(request_id) - self.shared.get(request_id, 0)

    def cost(self, request_id: str, num_tokens: int) -> BlockCost:
        self.asked.append(request_id)
        request = self.request(request_id)
        if request.resident_since is not None:
            end = request.num_computed_tokens + request.num_in_flight_tokens + num_tokens
            return BlockCost(max(0, _blocks(end) - self.held(request_id)))
        hit = self.hits.get(request_id, Hit())
        fresh = _blocks(hit.blocks * BLOCK + num_tokens) - hit.blocks
        return BlockCost(fresh, hit.unheld, hit.sole, hit.blocks * BLOCK)


def _blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK)


def request(
    name: str,
    prompt: int = 8,
    *,
    computed: int = 0,
    output: int = 0,
    in_flight: int = 0,
    slo: SLO = BestEffort(),  # noqa: B008  frozen
    arrival: float = 0.0,
    max_tokens: int = 64,
    priority: int = 0,
    weight: float = 1.0,
) -> Request:
    """A request as far as it has come; resident when it has computed or flying tokens."""
    ask = Submission(
        name,
        arrival,
        prompt,
        slo=slo,
        priority=priority,
        weight=weight,
        sampling=SamplingParams(max_tokens=max_tokens),
    )
    made = Request.of(ask)
    made.num_computed_tokens, made.num_output_tokens = computed, output
    made.has_begun = output > 0
    made.first_token = arrival if output else None
    made.resident_since = arrival if computed or in_flight else None
    if in_flight:
        made.launch(in_flight)
    return made


def decoding(name: str, context: int = 8, **more: object) -> Request:
    """A resident that needs one token to go on."""
    return request(name, context, computed=context, output=1, **more)


# Loads for the harness

SLOS: tuple[SLO, ...] = (
    Streaming(0.5, 0.05),
    Streaming(None, 0.04),
    Deadline(3.0),
    BestEffort(),
)


@dataclass
class Load:
    """Submissions and the hidden lengths of their outputs."""

    asks: list[Submission]
    lengths: dict[str, int]


def mixed_load(
    count: int,
    seed: int,
    *,
    rate: float = 8.0,
    slos: Sequence[SLO] = SLOS,
    max_prompt: int = 200,
    max_output: int = 60,
    num_prefixes: int = 4,
) -> Load:
    """Poisson arrivals of mixed kinds; some share prefixes, are calls of programs, have n > 1."""
    draw = random.Random(seed)
    asks, lengths, now = [], {}, 0.0
    for i in range(count):
        now += draw.expovariate(rate)
        slo = draw.choice(slos)
        prompt = draw.randint(1, max_prompt)
        shared = draw.randrange(num_prefixes) if draw.random() < 0.3 else None
        keys = [_key(shared, block) if shared is not None else b"" for block in range(prompt // 16)]
        program = None
        if draw.random() < 0.2:
            program = ProgramRef(f"p{i // 8}", f"c{i}", deadline=20.0, app="app")
        asks.append(
            Submission(
                f"r{i}",
                now,
                prompt,
                slo=slo,
                has_own_slo=draw.random() < 0.5,
                service_class=type(slo).__name__,
                priority=draw.randint(0, 2),
                weight=draw.choice((1.0, 2.0)),
                tenant=f"t{draw.randrange(3)}",
                program=program,
                n=draw.choice((1,) * 9 + (3,)),
                cap=max_output,
                sampling=SamplingParams(max_tokens=max_output),
                block_keys=tuple(keys) if shared is not None else None,
            )
        )
        for sample in range(asks[-1].n):
            name = f"r{i}#{sample}" if sample else f"r{i}"
            lengths[name] = draw.randint(1, max_output)
    return Load(asks, lengths)


def _key(prefix: int, block: int) -> bytes:
    return bytes((prefix, block))


# Strategies


@st.composite
def residents(draw: st.DrawFn, name: str) -> Request:
    """A resident in mid-prompt, decoding, in flight, or any of these."""
    prompt = draw(st.integers(1, 40))
    output = draw(st.integers(0, 5))
    computed = draw(st.integers(1, prompt + output))
    made = request(name, prompt, computed=computed, output=output, arrival=draw(st.floats(0, 9)))
    if draw(st.booleans()) and made.num_remaining_tokens:
        made.launch(draw(st.integers(1, made.num_remaining_tokens)))
    return made


@st.composite
def literal_views(draw: st.DrawFn) -> LiteralView:
    """Any mix of residents and waiting requests over any amount of free memory."""
    running = [draw(residents(f"r{i}")) for i in range(draw(st.integers(0, 5)))]
    waiting = [
        request(f"w{i}", draw(st.integers(1, 60)), output=draw(st.integers(0, 3)))
        for i in range(draw(st.integers(0, 5)))
    ]
    hits = {}
    for each in waiting:
        blocks = draw(st.integers(0, (each.num_tokens - 1) // BLOCK))
        unheld = draw(st.integers(0, blocks))
        hits[each.id] = Hit(blocks, unheld, draw(st.integers(0, blocks - unheld)))
    revivable = max((hit.unheld for hit in hits.values()), default=0)
    pin = Pin(running[0].id, draw(st.booleans())) if running else None
    limits = Limits(draw(st.integers(1, 64)), draw(st.integers(1, 8)), BLOCK)
    view = LiteralView(running, waiting, revivable + draw(st.integers(0, 12)), limits, pin)
    view.hits = hits
    view.shared = {r.id: draw(st.integers(0, view.held(r.id))) for r in running}
    return view


@st.composite
def orders(draw: st.DrawFn, view: LiteralView) -> list[Want]:
    """Wants in any order, for any part of the view, with any limits."""
    names = [r.id for r in (*view.running, *view.waiting)]
    chosen = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    caps = st.none() | st.integers(1, 20)
    specs = st.none() | st.builds(Spec, max_nodes=st.integers(0, 8), depth=st.just(3))
    return [Want(name, draw(caps), draw(specs)) for name in chosen]


budgets = st.builds(
    Budget,
    max_tokens=st.none() | st.integers(1, 64),
    max_prefill_tokens=st.none() | st.integers(0, 64),
    node_budget=st.integers(0, 8),
    chunk=st.booleans(),
)
