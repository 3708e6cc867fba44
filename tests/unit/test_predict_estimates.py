"""Bounds from a model's answers, whom to ask it about, and what it is told of a request."""

from __future__ import annotations

import math

import pytest

from giusto.core.events import LEVELS, Arrived, Estimated, Finished, Rejected, Stepped
from giusto.core.latency import BatchShape
from giusto.core.plan import StepOutcome, Yield
from giusto.core.request import FinishReason, ProgramRef, Reason, Request
from giusto.predict.base import Constant
from giusto.predict.estimates import ForestPredictor, Refresh
from giusto.predict.features import BUCKETS, MAX_PROMPT_IDS, NUM_FEATURES, features, row
from giusto.predict.forest_client import ForestFeed
from strategies import request

#: Lengths at 0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95 and 0.99.
ANSWER = (10.0, 20.0, 40.0, 50.0, 60.0, 100.0, 200.0, 400.0)


def at(emitted: int, cap: int = 1000) -> Request:
    made = request("asked", output=emitted)
    made.cap = cap
    return made


def told(answer: tuple[float, ...] = ANSWER) -> ForestPredictor:
    """A predictor that has an answer for `asked`; anything else is 7 tokens."""
    bounds = ForestPredictor(Constant(7.0))
    bounds.observe(Arrived(at(0), 0.0))
    bounds.observe(Estimated("asked", answer, 0.1))
    return bounds


# Bounds


def test_without_an_answer_the_stand_in_answers() -> None:
    """Before the first, after the end, and for a request it never saw."""
    bounds = ForestPredictor(Constant(7.0))
    bounds.observe(Estimated("asked", ANSWER, 0.0))
    assert bounds.remaining(at(0), 0.95) == 7
    bounds = told()
    assert bounds.remaining(at(0), 0.95) == 200
    bounds.observe(Finished("asked", 1.0, FinishReason.STOP))
    bounds.observe(Estimated("asked", ANSWER, 1.1))
    assert bounds.remaining(at(0), 0.95) == 7


def test_the_refused_are_forgotten() -> None:
    """Like the finished."""
    bounds = told()
    bounds.observe(Rejected("asked", 1.0, Reason.DRAINING))
    assert bounds.remaining(at(0), 0.95) == 7


def test_levels_are_read_off_and_between_them_it_is_straight() -> None:
    """Below the lowest it is the lowest; beyond the last it goes on to the cap."""
    bounds = told()
    read = [bounds.remaining(at(0), level) for level in LEVELS]
    assert read == pytest.approx(list(ANSWER))
    between = [bounds.remaining(at(0), level) for level in (0.01, 0.6, 0.85, 0.995, 1.0)]
    assert between == pytest.approx([10, 45, 80, math.sqrt(400 * 1000), 1000])
    assert bounds.remaining(at(0)) == pytest.approx(50)


def test_a_bound_is_a_quantile_of_the_lengths_beyond_what_was_emitted() -> None:
    """At 40 tokens half is over: of the other half, 0.8 lie within the 0.9 quantile."""
    bounds = told()
    assert bounds.remaining(at(40), 0.8) == pytest.approx(100 - 40)
    assert bounds.remaining(at(45), 0.5) == pytest.approx(60 - 45)


def test_who_outlives_the_answer_goes_back_to_the_stand_in() -> None:
    """At its last length, and at the cap."""
    bounds = told()
    assert bounds.remaining(at(399), 0.5) > 1
    assert bounds.remaining(at(400), 0.5) == 1
    assert bounds.remaining(at(100, cap=100), 0.9) == 1


def test_no_bound_exceeds_the_cap() -> None:
    """The answer may: it knows nothing of caps."""
    assert told().remaining(at(0, cap=150), 0.95) == 150
    assert told().remaining(at(0, cap=150), 0.999) == 150


def test_equal_lengths_are_no_trouble() -> None:
    """As discrete distributions have them."""
    bounds = told((5.0, 5.0, 5.0, 9.0, 9.0, 9.0, 9.0, 9.0))
    assert bounds.remaining(at(0), 0.5) == 5
    assert bounds.remaining(at(5), 0.9) == pytest.approx(4)


@pytest.mark.parametrize("quantile", [0.0, 1.0])
def test_a_quantile_lies_between_none_and_all(quantile: float) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="quantile"):
        ForestPredictor(Constant(1.0), quantile)


# Whom to ask about


def stepped(*names: str) -> Stepped:
    outcome = StepOutcome(0, 0.0, 1.0, BatchShape(), {name: Yield((1,)) for name in names})
    return Stepped(outcome, 1.0)


def test_who_arrives_is_due_and_again_every_so_many_tokens() -> None:
    """Milestones are multiples; several tokens in a step may jump one."""
    refresh = Refresh(every=50)
    made = request("a")
    refresh.observe(Arrived(made, 0.0))
    due = []
    for emitted in (0, 1, 49, 50, 51, 99, 103, 149, 260, 299):
        made.num_output_tokens = emitted
        refresh.observe(stepped("a", "unknown"))
        due += [emitted for request in refresh.take() if request is made]
    assert due == [0, 50, 103, 260]


def test_due_once_however_often_it_steps() -> None:
    """Until somebody takes it."""
    refresh = Refresh(every=1)
    made = request("a")
    refresh.observe(Arrived(made, 0.0))
    for emitted in (1, 2, 3):
        made.num_output_tokens = emitted
        refresh.observe(stepped("a"))
    assert refresh.take() == [made]
    assert refresh.take() == []


@pytest.mark.parametrize(
    "ending", [Finished("a", 1.0, FinishReason.STOP), Rejected("a", 1.0, Reason.DRAINING)]
)
def test_who_is_gone_is_not_due(ending: object) -> None:
    """Whatever way it ended."""
    refresh = Refresh()
    refresh.observe(Arrived(request("a"), 0.0))
    refresh.observe(ending)
    refresh.observe(stepped("a"))
    assert refresh.take() == []


def test_a_refresh_takes_tokens() -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="every"):
        Refresh(0)


# What is told


def test_features_are_always_the_same_numbers() -> None:
    """A stored sample must fit the next run: no hash that changes from process to process."""
    made = request("a", prompt=99)
    made.service_class = "chat"
    made.ref = ProgramRef("p", "c", stage=2, app="mail")
    known = features(made, [7, 7, 123])
    assert len(known) == NUM_FEATURES
    assert known[:6] == (4.6052, 2.0, 0.9479, 0.3969, 0.673, 0.317)
    assert {i: x for i, x in enumerate(known[6:]) if x} == {10: -1.1547, 0: 0.5774}


def test_features_tell_apart_what_may_matter() -> None:
    """Class, app, stage, prompt length and prompt tokens; and nothing else, such as the id."""
    seen = set()
    for name, stage, app, prompt in (
        ("chat", None, None, 8),
        ("batch", None, None, 8),
        ("chat", 0, None, 8),
        ("chat", 0, "mail", 8),
        ("chat", None, None, 9),
    ):
        made = request("a", prompt=prompt)
        made.service_class = name
        if stage is not None:
            made.ref = ProgramRef("p", "c", stage=stage, app=app)
        seen.add(features(made))
    seen.add(features(request("a"), [1, 2, 3]))
    assert len(seen) == 6
    assert features(request("a")) == features(request("b"))


def test_the_end_of_a_long_prompt_is_looked_at() -> None:
    """Its system prompt stands at the start and says little."""
    tail = list(range(MAX_PROMPT_IDS))
    assert features(request("a"), [*range(5000), *tail]) == features(request("a"), tail)
    bag = features(request("a"), tail)[-BUCKETS:]
    assert all(abs(count) <= math.sqrt(MAX_PROMPT_IDS) for count in bag)


def test_a_row_begins_with_progress() -> None:
    """The logarithm of the tokens so far."""
    assert row((1.0, 2.0), 0) == (0.0, 1.0, 2.0)
    assert row((1.0,), 50)[0] == pytest.approx(math.log(51))


# The driver's side


class Client:
    """Notes what it is told, and answers what it is given."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.learned: list[int] = []
        self.answers: list[tuple[str, tuple[float, ...]]] = []

    def ask(self, request_id: str, known: tuple[float, ...], emitted: int = 0) -> None:
        assert len(known) == NUM_FEATURES
        self.asked.append((request_id, emitted))

    def learn(self, known: tuple[float, ...], length: int) -> None:
        assert len(known) == NUM_FEATURES
        self.learned.append(length)

    def poll(self) -> list[tuple[str, tuple[float, ...]]]:
        answers, self.answers = self.answers, []
        return answers


def test_a_feed_asks_teaches_and_passes_answers_on() -> None:
    """Asks at arrival and at milestones, teaches at the end, tells answers as events."""
    client = Client()
    feed = ForestFeed(client, lambda request: [1, 2])
    made = request("a")
    feed.observe(Arrived(made, 0.0))
    assert (feed.poll(0.0), client.asked) == ([], [("a", 0)])
    client.answers.append(("a", ANSWER))
    assert feed.poll(0.5) == [Estimated("a", ANSWER, 0.5)]
    made.num_output_tokens = 51
    feed.observe(stepped("a"))
    feed.poll(1.0)
    assert client.asked == [("a", 0), ("a", 51)]
    feed.observe(Finished("a", 2.0, FinishReason.LENGTH))
    assert client.learned == [51]


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
def test_a_feed_teaches_no_length_that_is_none(reason: FinishReason) -> None:
    """Cancelled and failed, without any token, refused, unknown."""
    client = Client()
    feed = ForestFeed(client)
    made, empty = request("a", output=5), request("empty")
    for each in (made, empty, request("refused")):
        feed.observe(Arrived(each, 0.0))
    feed.observe(Finished("a", 1.0, reason))
    feed.observe(Finished("empty", 1.0, FinishReason.STOP))
    feed.observe(Rejected("refused", 1.0, Reason.DRAINING))
    feed.observe(Finished("unknown", 1.0, FinishReason.STOP))
    assert (feed.poll(1.0), client.asked, client.learned) == ([], [], [])
