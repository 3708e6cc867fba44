"""Whatever arrives, every simulated run is complete, in order, repeatable and leaves nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from giusto import routing
from giusto.core.request import FinishReason
from giusto.core.slo import SLO, Deadline, Program, Streaming
from giusto.policies import REGISTRY
from giusto.sim.cluster import Outcome
from giusto.workload.records import Entry, Piece
from simulated import PROFILE, call, cluster, entry

BLOCKS = 24
FITS = BLOCKS * PROFILE.block_size
SLOS: tuple[SLO | None, ...] = (None, Streaming(0.2, 0.03), Deadline(0.5))


@st.composite
def requests(draw: st.DrawFn, name: str) -> Entry:
    """Single requests; one in a while is too large for the cache, or equal to its cap."""
    prompt = draw(st.integers(1, 150) | st.just(FITS))
    shared = draw(st.integers(0, prompt))
    cap = draw(st.integers(1, 40))
    return entry(
        name,
        draw(st.floats(0, 2)),
        prompt,
        draw(st.integers(0, 50)),
        max_tokens=cap,
        slo=draw(st.sampled_from(SLOS)),
        tenant=draw(st.sampled_from("ab")),
        pieces=(Piece("system", 0, shared),) if shared else (),
    )


@st.composite
def programs(draw: st.DrawFn, name: str) -> list[Entry]:
    """Any graph of up to five calls: each waits for some of the earlier ones, or for none."""
    calls: list[Entry] = []
    deadline = draw(st.sampled_from((None, 0.5, 5.0)))
    for number in range(draw(st.integers(1, 5))):
        earlier = [f"c{k}" for k in range(number)]
        parents = draw(st.lists(st.sampled_from(earlier), unique=True)) if earlier else []
        calls.append(
            call(
                name,
                f"c{number}",
                tuple(parents),
                draw(st.sampled_from((0.0, 0.3))),
                arrival=draw(st.floats(0, 2)),
                deadline=deadline,
                prompt=draw(st.integers(1, 100) | st.just(FITS)),
                output=draw(st.integers(1, 20)),
            )
        )
    return calls


@st.composite
def loads(draw: st.DrawFn) -> list[Entry]:
    singles = [draw(requests(f"r{k}")) for k in range(draw(st.integers(0, 8)))]
    graphs = [draw(programs(f"p{k}")) for k in range(draw(st.integers(0, 2)))]
    return [*singles, *(one for graph in graphs for one in graph)] or [entry("alone")]


SETTINGS = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(list(REGISTRY)),
        "lookahead": st.sampled_from((0, 1)),
        "replicas": st.integers(1, 3),
        "router": st.sampled_from(list(routing.ROUTERS)),
        "prefix_caching": st.booleans(),
        "seed": st.integers(0, 9),
    }
)


def simulated(entries: list[Entry], given: dict[str, Any]) -> Outcome:
    """Run with every plan checked; afterwards nothing is held or waited for."""
    made = cluster(entries, num_blocks=BLOCKS, check=True, **given)
    done = made.run(entries)
    for replica in made.replicas:
        replica.scheduler.check()
        assert not replica.scheduler.has_work
        assert replica.free_blocks == BLOCKS
        assert (replica.running, replica.waiting, replica.queued_tokens) == (0, 0, 0)
        assert not replica._executor._answers
    return done


@settings(max_examples=120)
@given(loads(), SETTINGS)
def test_runs_are_complete_and_in_order(entries: list[Entry], given: dict[str, Any]) -> None:
    """One record per entry; answers have their hidden length; programs keep their order."""
    done = simulated(entries, given)
    assert Counter(record.id for record in done.records) == Counter(e.id for e in entries)
    records = {record.id: record for record in done.records}
    for one in entries:
        record = records[one.id]
        times = record.token_times
        assert record.closed is not None
        assert list(times) == sorted(times)
        assert all(record.arrival < time <= record.closed for time in times)
        if record.is_answered:
            assert len(times) == max(1, min(one.output_tokens or 0, one.max_tokens))
            assert times[-1] == record.closed
        if one.prompt_tokens == FITS:
            assert record.refused == "too_large" or record.error
        check_place(one, records)


def check_place(one: Entry, records: dict[str, Any]) -> None:
    """A root arrives at its time, another when the last of its parents has ended."""
    record = records[one.id]
    if one.step is None or not one.waits_for:
        assert record.arrival == one.arrival
        return
    parents = [records[f"{one.step.program}.{name}"] for name in one.waits_for]
    ended = max(parent.closed for parent in parents)
    if all(parent.is_answered for parent in parents):
        assert record.arrival == ended + one.step.tool_time
        assert record.error is None
    else:
        assert record.finish is FinishReason.ERROR
        assert (record.arrival, record.closed) == (ended, ended)
        assert not record.token_times
    if isinstance(record.slo, Program) and record.program is not None:
        first = min(r.arrival for r in records.values() if r.id.startswith(f"{one.step.program}."))
        assert record.origin == record.program.opened == first


@settings(max_examples=25)
@given(loads(), SETTINGS)
def test_runs_repeat(entries: list[Entry], given: dict[str, Any]) -> None:
    """The same input gives the same records in the same order, and as many steps."""
    first, second = (simulated(entries, given) for _ in range(2))
    assert first == second
