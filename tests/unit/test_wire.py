"""Messages between server and engine: every one survives the trip, however its bytes are cut."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from giusto.core import events as ev
from giusto.core.latency import BatchShape
from giusto.core.plan import StepOutcome, StepTimes, Yield
from giusto.core.request import (
    FinishReason,
    ProgramRef,
    Reason,
    Request,
    SamplingParams,
    Submission,
)
from giusto.core.slo import BestEffort, Deadline, Program, Streaming
from giusto.engine import wire

texts = st.text(max_size=12)
names = st.text(min_size=1, max_size=8)
times = st.floats(-1e9, 1e9)
spans = st.floats(1e-3, 1e6)
counts = st.integers(0, 1 << 31)
tokens = st.integers(0, 200_000)

slos = st.one_of(
    st.builds(Streaming, spans, spans | st.none()),
    st.builds(Streaming, st.none(), spans),
    st.builds(Deadline, spans),
    st.builds(Program, spans),
    st.builds(BestEffort, spans),
)
samplings = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 4096),
    min_tokens=counts,
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1),
    top_k=counts,
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.1, 2),
    presence_penalty=st.floats(-2, 2),
    frequency_penalty=st.floats(-2, 2),
    logit_bias=st.lists(st.tuples(tokens, st.floats(-100, 100)), max_size=3).map(tuple),
    seed=st.none() | st.integers(0, (1 << 64) - 1),
    stop=st.lists(texts, max_size=3).map(tuple),
    stop_token_ids=st.lists(tokens, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    logprobs=st.none() | st.integers(0, 20),
)
programs = st.builds(
    ProgramRef,
    id=names,
    call=names,
    parents=st.lists(names, max_size=3).map(tuple),
    stage=st.none() | counts,
    final=st.booleans(),
    app=st.none() | texts,
    deadline=st.none() | spans,
)


@st.composite
def submissions(draw) -> Submission:
    ids = tuple(draw(st.lists(tokens, min_size=1, max_size=20)))
    return Submission(
        id=draw(names),
        arrival=draw(times),
        num_prompt_tokens=len(ids),
        prompt_ids=ids,
        slo=draw(slos),
        has_own_slo=draw(st.booleans()),
        service_class=draw(texts),
        weight=draw(st.floats(0, 100)),
        priority=draw(st.integers(-(1 << 31), 1 << 31)),
        tenant=draw(texts),
        program=draw(st.none() | programs),
        cap=draw(st.integers(1, 4096)),
        sampling=draw(samplings),
        n=draw(st.integers(1, 128)),
        model=draw(texts),
        cache_salt=draw(texts),
        block_keys=draw(
            st.none() | st.lists(st.binary(max_size=16), min_size=1, max_size=3).map(tuple)
        ),
    )


yields = st.builds(
    Yield,
    tokens=st.lists(tokens, min_size=1, max_size=4).map(tuple),
    drafted=st.integers(0, 8),
    selected=st.integers(0, 8),
    accepted=st.integers(0, 8),
    finish=st.none() | st.sampled_from(FinishReason),
    error=st.none() | texts,
    logprobs=st.none() | st.just(([7, -0.5, [[7, -0.5], [9, -1.5]]],)),
)
outcomes = st.builds(
    StepOutcome,
    step=counts,
    started=times,
    ended=times,
    shape=st.builds(BatchShape, *[counts] * len(BatchShape.__slots__)),
    yields=st.dictionaries(names, yields, max_size=4),
    times=st.builds(StepTimes, *[spans] * len(StepTimes.__slots__)),
)
reasons = st.sampled_from(Reason)
kinds = (
    st.builds(ev.Estimated, names, st.lists(spans, max_size=8).map(tuple), times),
    st.builds(ev.Foretold, names, spans, spans, times),
    st.builds(ev.Admitted, names, times, counts),
    st.builds(ev.Resumed, names, times, counts),
    st.builds(ev.Preempted, names, times),
    st.builds(ev.Stepped, outcomes, times),
    st.builds(ev.Demoted, names, times, reasons),
    st.builds(ev.Finished, names, times, st.sampled_from(FinishReason), st.none() | texts),
    st.builds(ev.Rejected, names, times, reasons, st.none() | spans),
    st.builds(ev.ProgramOpened, names, times, st.none() | spans),
    st.builds(ev.ProgramClosed, names, times, times, st.none() | st.booleans()),
)
events = st.one_of(*kinds)


def trip(data):
    """Send data through a frame."""
    (back,) = wire.FrameReader().feed(wire.pack_frame({"data": data}))
    return back["data"]


@given(submissions())
def test_a_submission_survives(ask):
    """What the engine receives equals what the server sent, field for field."""
    assert wire.decode_ask(trip(wire.encode_ask(ask))) == ask


@given(slos)
def test_an_slo_survives(slo):
    """Each kind of SLO comes back as its own kind."""
    assert wire.decode_slo(trip(wire.encode_slo(slo))) == slo


@given(st.lists(events, max_size=4))
def test_events_survive(batch):
    """Events of every kind arrive as they were published, in order."""
    assert [wire.decode_event(data) for data in trip(wire.encode_events(batch))] == batch


def test_every_kind_of_event_is_tried():
    """The strategy above draws each event that exists, except the arrival."""
    drawn = {type(find(kind, lambda _: True)) for kind in kinds}
    assert drawn | {ev.Arrived} == set(ev.Event.__args__)


@given(slos, times, times)
def test_an_arrival_carries_what_the_scheduler_settled(slo, origin, now):
    """An arrival goes by id, with the SLO and the origin that the scheduler gave it."""
    request = Request.of(Submission("a", 0.0, 1))
    request.slo, request.origin = slo, origin
    ((kind, name, settled, since, at),) = trip(wire.encode_events([ev.Arrived(request, now)]))
    assert (kind, name, since, at) == ("Arrived", "a", origin, now)
    assert wire.decode_slo(settled) == slo


def test_yields_without_tokens_are_left_out():
    """A chunk that ends mid-prompt has nothing to tell and takes no room."""
    outcome = StepOutcome(0, 1.0, 2.0, BatchShape(), {"a": Yield(), "b": Yield((5,))})
    (back,) = map(wire.decode_event, trip(wire.encode_events([ev.Stepped(outcome, 2.0)])))
    assert back.outcome == replace(outcome, yields={"b": Yield((5,))})


MESSAGES = [{"op": "abort", "id": "é" * 300}, {}, {"events": [], "load": {"running": 1}}]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 64, 4096])
def test_frames_may_be_cut_anywhere(size):
    """Messages arrive whole and in order whatever pieces their bytes come in."""
    data = b"".join(map(wire.pack_frame, MESSAGES))
    reader = wire.FrameReader()
    got = [m for i in range(0, len(data), size) for m in reader.feed(data[i : i + size])]
    assert got == MESSAGES


@given(st.data())
def test_frames_cut_at_random(data):
    """Random cuts, empty pieces among them, change nothing."""
    stream = b"".join(map(wire.pack_frame, MESSAGES))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    borders = [0, *cuts, len(stream)]
    reader = wire.FrameReader()
    got = [m for a, b in itertools.pairwise(borders) for m in reader.feed(stream[a:b])]
    assert got == MESSAGES


def test_an_oversize_frame_is_refused_by_its_head_alone():
    """A frame that announces more than the limit is refused before its body is awaited."""
    head = (wire.MAX_FRAME_BYTES + 1).to_bytes(4, "big")
    with pytest.raises(ValueError, match="exceeds"):
        list(wire.FrameReader().feed(head))


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"nul"])
def test_a_body_that_is_no_json_is_refused(body):
    """Bytes that are no JSON are a ValueError, never anything that runs."""
    with pytest.raises(ValueError):
        list(wire.FrameReader().feed(len(body).to_bytes(4, "big") + body))


def test_a_lone_surrogate_does_not_break_a_frame():
    """Text that UTF-8 cannot hold travels as an escape."""
    assert trip("\ud800") == "\ud800"


@pytest.mark.parametrize("data", [["Nonsense", 1], ["os.system", "true"], ["Finished"]])
def test_an_unknown_event_becomes_nothing(data):
    """A name that is no event is an error, not a class looked up by name."""
    with pytest.raises((KeyError, ValueError)):
        wire.decode_event(data)


def test_a_frame_is_plain_json():
    """Behind its length a frame is JSON that anybody can read."""
    frame = wire.pack_frame({"a": [1, None]})
    assert json.loads(frame[4:]) == {"a": [1, None]}
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
