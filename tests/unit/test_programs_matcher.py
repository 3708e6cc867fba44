"""The matcher by its events: what it foretells, learns, and lets pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from giusto.core.events import Arrived, Finished, Foretold, ProgramClosed, Rejected
from giusto.core.request import FinishReason, ProgramRef, Reason, Request, Submission
from giusto.programs import store
from giusto.programs.base import LAST, Outlook, Unforeseen
from giusto.programs.graph import Graph, Stage
from giusto.programs.history import Past
from giusto.programs.matcher import ENOUGH, SURE, HistoryMatcher
from giusto.programs.trust import ENOUGH as JUDGED
from giusto.programs.trust import Claim

Calls = Sequence[tuple[int, int]]


class Play:
    """A server that never queues: programs whose calls follow one another."""

    def __init__(self, matcher: HistoryMatcher | None = None) -> None:
        self.matcher = matcher or HistoryMatcher()
        self.now = 0.0
        self.count = 0

    def come(
        self, program: str | None, prompt: int, *, app: str | None = "a", final: bool = False
    ) -> Request:
        """A call comes, known by ids alone."""
        self.count += 1
        name = f"r{self.count}"
        ref = None if program is None else ProgramRef(program, name, final=final, app=app)
        request = Request.of(Submission(name, self.now, prompt, program=ref))
        self.matcher.observe(Arrived(request, self.now))
        return request

    def end(self, request: Request, output: int, reason: FinishReason = FinishReason.STOP) -> None:
        self.now += 1.0
        request.num_output_tokens = output
        self.matcher.observe(Finished(request.id, self.now, reason))

    def close(self, program: str, app: str | None = "a") -> None:
        self.matcher.observe(ProgramClosed(program, self.now, self.now, None, app, 1))

    def run(
        self, program: str, calls: Calls, *, app: str | None = "a", gap: float = 0.0
    ) -> list[Outlook]:
        """Run a program to its end; what each call looked out on while it was under way."""
        seen = []
        for index, (prompt, output) in enumerate(calls):
            self.now += gap * (index > 0)
            request = self.come(program, prompt, app=app)
            seen.append(self.matcher.outlook(request))
            self.end(request, output)
        self.close(program, app)
        return seen


CALLS = [(100, 10), (150, 40), (220, 20), (300, 80)]


def test_without_history_each_call_is_the_last() -> None:
    """As it is for requests of no program, and for those that were never seen."""
    play = Play()
    assert play.run("p", CALLS) == [LAST] * 4
    assert play.matcher.outlook(play.come(None, 10)) is LAST
    ask = Submission("x", 0.0, 10, program=ProgramRef("p", "x"))
    assert play.matcher.outlook(Request.of(ask)) is LAST
    assert play.matcher.ahead("p") is None


def test_the_same_program_again_is_foretold_to_the_token() -> None:
    """Online and precise shares agree at every stage, whatever else history holds.

    What is to come is as it was once equal lengths are no chance any more.
    """
    play = Play()
    for i in range(5):
        play.run(f"other {i}", [(101 + i, 12 + i), (400, 300 + i)], gap=3.0)
    play.run("first", CALLS, gap=2.0)
    for i in range(5):
        play.run(f"another {i}", [(99 - i, 9), (150, 45 - i), (20, 2)], gap=1.0)
    graph = Graph("a", [Stage((call,), 2.0 * (i > 0)) for i, call in enumerate(CALLS)])
    seen = play.run("again", CALLS, gap=2.0)
    time = play.matcher.token_time.seconds
    shares = [graph.share(stage, time) for stage in range(4)]
    assert [outlook.share for outlook in seen] == pytest.approx(shares)
    for stage in range(SURE, 4):
        assert seen[stage] == Outlook(*graph.after(stage), pytest.approx(shares[stage]))
    assert seen[-1] == LAST


def test_the_likest_tells_most() -> None:
    """Programs that began alike go on alike."""
    play = Play()
    for i in range(10):
        play.run(f"short {i}", [(100 + i, 10 + i), (110, 10)])
        play.run(f"long {i}", [(1000 + i, 100 + i), (1100, 400), (1200, 400)])
    request = play.come("p", 1010)
    play.end(request, 108)
    ahead = play.matcher.ahead("p")
    assert ahead is not None
    assert (ahead.calls, ahead.output_tokens) == (2, 800)
    request = play.come("q", 98)
    assert play.matcher.outlook(request).output_tokens == 10


def test_with_too_few_candidates_the_app_is_counted_on() -> None:
    """What programs of the app had left after so many calls, and the own work so far."""
    play = Play()
    for i in range(ENOUGH - 1):
        play.run(f"p{i}", [(100, 10), (100, 20 + 10 * i)], gap=1.0)
    request = play.come("p", 5000)
    outlook = play.matcher.outlook(request)
    assert (outlook.stages, outlook.calls, outlook.output_tokens) == (1, 1, 60)
    time = play.matcher.token_time.seconds
    assert outlook.share == pytest.approx(60 * time / (60 * time + 1.0 + 60 * time))


def test_a_program_that_outlasts_all_is_counted_on() -> None:
    """Nothing in history is as long: what the longest had left at their last is said."""
    play = Play()
    for i in range(5):
        play.run(f"p{i}", [(100, 10)] * 4)
    for _ in range(6):
        request = play.come("long", 100)
        play.end(request, 10)
    ahead = play.matcher.ahead("long")
    assert ahead is not None
    assert (ahead.calls, ahead.output_tokens) == (1, 10)
    assert play.matcher.outlook(play.come("long", 100)) == Outlook(share=1.0)


def test_counting_replaces_a_match_that_was_worse() -> None:
    """Until it is the better one again."""
    play = Play()
    for i in range(ENOUGH):
        play.run(f"p{i}", [(100 + 50 * i, 10), (100, 100 + i)])
    matched = play.matcher.outlook(play.come("q", 100))
    play.matcher.trust.judge("a", [Claim(0, 1.0, 100.0)] * JUDGED, 100)
    counted = play.matcher.outlook(play.come("r", 100))
    assert matched.output_tokens == 100
    assert counted.output_tokens == 104.5


def test_a_match_is_judged_when_a_program_ends() -> None:
    """By both claims that were made of it on the way."""
    play = Play()
    for i in range(10):
        play.run(f"p{i}", [(100 + 7 * i, 10), (200, 10), (100, 100)])
    assert play.matcher.trust.in_match("a")
    for i in range(JUDGED // 3):
        # Each odd one is followed by some that begin as it did, but end as most do.
        play.run(f"odd {i}", [(1000 + i, 10), (2000, 10), (100, 1000)])
        for j in range(2):
            play.run(f"even {i} {j}", [(1000 + i, 10), (2000, 10), (100, 100)])
    assert not play.matcher.trust.in_match("a")


def test_what_was_foretold_is_told_when_a_program_has_ended() -> None:
    """Of each moment both ways, once; nothing of a moment after which no token came."""
    play = Play()
    for i in range(ENOUGH):
        play.run(f"p{i}", [(100, 10), (200, 40)])
    play.matcher.poll(play.now)
    play.run("q", [(100, 10), (200, 80)])
    assert play.matcher.poll(play.now) == [
        Foretold("matched", 40, 80, play.now),
        Foretold("counted", 40, 80, play.now),
    ]
    assert play.matcher.poll(play.now) == []


def test_a_final_call_is_the_last() -> None:
    """Whatever history says."""
    play = Play()
    for i in range(5):
        play.run(f"p{i}", CALLS)
    assert play.matcher.outlook(play.come("q", 100)).calls == 3
    assert play.matcher.outlook(play.come("r", 100, final=True)) == LAST


def test_calls_side_by_side_share_an_outlook() -> None:
    """What is to come after their stage, for as long as each is under way."""
    play = Play()
    for i in range(ENOUGH):
        play.run(f"p{i}", [(100, 10), (100, 50)])
    one, other = play.come("q", 100), play.come("q", 100)
    assert play.matcher.outlook(one) is play.matcher.outlook(other)
    assert play.matcher.outlook(one).output_tokens == 50
    play.end(one, 10)
    assert play.matcher.outlook(one) is LAST
    assert play.matcher.outlook(other).output_tokens == 50


def test_apps_do_not_teach_each_other() -> None:
    """Unless one of the two states none."""
    play = Play()
    for i in range(5):
        play.run(f"p{i}", CALLS, app="b")
    assert play.matcher.outlook(play.come("q", 100, app="a")) == LAST
    assert play.matcher.outlook(play.come("r", 100, app=None)).calls == 3


@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.ABORT])
def test_a_program_cut_short_teaches_nothing(reason: FinishReason) -> None:
    """Its last call failed or was cancelled."""
    play = Play()
    play.end(play.come("p", 100), 10)
    play.end(play.come("p", 100), 10, reason)
    play.close("p")
    assert len(play.matcher.history) == 0


def test_a_refused_call_teaches_nothing() -> None:
    """Nor does a program of nothing but one."""
    play = Play()
    request = play.come("p", 100)
    play.matcher.observe(Rejected(request.id, 1.0, Reason.QUEUE_FULL))
    assert play.matcher.outlook(request) is LAST
    play.close("p")
    assert len(play.matcher.history) == 0


def test_a_program_that_ends_twice_ended_once() -> None:
    """And endings of what was never seen are ignored, as is whatever is no event."""
    play = Play()
    play.run("p", CALLS)
    play.close("p")
    play.close("ghost")
    play.matcher.observe(Finished("ghost", 1.0, FinishReason.STOP))
    play.matcher.observe(Rejected("ghost", 1.0, Reason.DRAINING))
    play.matcher.observe("something else")
    assert len(play.matcher.history) == 1


def test_a_request_id_that_comes_again_is_a_call_that_failed() -> None:
    """The newer one counts."""
    play = Play()
    request = play.come("p", 100)
    play.matcher.observe(Arrived(request, 1.0))
    play.end(request, 10)
    play.close("p")
    assert len(play.matcher.history) == 0


def test_programs_that_never_end_are_forgotten() -> None:
    """The longest untouched first; their calls may still end."""
    matcher = HistoryMatcher([Past(Graph("a", [Stage(((9, 9),))] * 2))], max_open=3)
    play = Play(matcher)
    requests = [play.come(f"p{i}", 9) for i in range(5)]
    assert [matcher.outlook(request).calls for request in requests] == [0, 0, 1, 1, 1]
    for request in requests:
        play.end(request, 9)
    for i in range(5):
        play.close(f"p{i}")
    assert len(matcher.history) == 4


def test_history_survives_a_restart(tmp_path: Path) -> None:
    """A new matcher with what the old one saved foretells the same, by match and by counting."""
    play = Play()
    for i in range(ENOUGH):
        play.run(f"p{i}", [(100 + i, 10), (150, 40 + i), (220, 20)], gap=2.0)
    path = tmp_path / "programs.jsonl"
    store.save(path, play.matcher.history.past(play.now))
    again = Play(HistoryMatcher(store.load(path)))
    for matcher in (play, again):
        matcher.end(matcher.come("q", 103), 12)
    assert play.matcher.ahead("q") == again.matcher.ahead("q")
    assert play.matcher.quantiles.ahead("a", 2) == again.matcher.quantiles.ahead("a", 2)


def test_the_pace_of_tokens_is_learned_from_calls() -> None:
    """From first to last token, queueing left out."""
    play = Play()
    request = play.come("p", 10)
    request.first_token, request.last_token = 5.0, 6.0
    play.end(request, 11)
    assert play.matcher.token_time.seconds == pytest.approx(0.1)


def test_unforeseen_takes_each_call_for_the_last() -> None:
    """Whatever it has seen."""
    play, blind = Play(), Unforeseen()
    request = play.come("p", 10)
    blind.observe(Arrived(request, 0.0))
    assert blind.outlook(request) == LAST
