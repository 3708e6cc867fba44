"""A program under way: where its calls go, by parents, by stage and by time alone."""

from __future__ import annotations

import pytest

from giusto.core.request import ProgramRef, Request, Submission
from giusto.programs import growing
from giusto.programs.graph import Stage
from giusto.programs.growing import MAX_TOOL_TIME, Growing


class Played:
    """A program whose calls come and end as a test says."""

    def __init__(self) -> None:
        self.growing = Growing()
        self.requests: dict[str, Request] = {}

    def come(self, name: str, now: float, prompt: int = 10, **place: object) -> int:
        """A call comes; returns its stage."""
        ref = ProgramRef("p", **{"call": name, "app": "a"} | place)
        request = Request.of(Submission(name, now, prompt, program=ref))
        self.requests[name] = request
        return self.growing.arrive(request).stage

    def end(self, name: str, now: float, output: int = 5) -> None:
        self.requests[name].num_output_tokens = output
        self.growing.answer(name, now)


def test_with_ids_alone_a_call_follows_those_that_had_ended() -> None:
    """What overlaps in time is one stage; what comes after an ending is the next."""
    play = Played()
    assert play.come("plan", 0.0) == 0
    play.end("plan", 2.0, 7)
    assert [play.come("left", 2.5), play.come("right", 3.0)] == [1, 1]
    play.end("left", 4.0)
    play.end("right", 5.0, 9)
    assert play.come("join", 6.0, 40) == 2
    play.end("join", 7.0)
    graph = play.growing.close()
    assert graph is not None
    assert graph.app == "a"
    assert graph.stages == (
        Stage(((10, 7),)),
        Stage(((10, 5), (10, 9)), 1.0),
        Stage(((40, 5),), 1.0),
    )


def test_parents_say_more_than_time() -> None:
    """A call whose parent is of an early stage goes behind that, however late it comes."""
    play = Played()
    play.come("plan", 0.0)
    play.end("plan", 1.0)
    play.come("left", 1.0, parents=("plan",))
    play.end("left", 2.0)
    assert play.come("deep", 2.5, parents=("left",)) == 2
    assert play.come("right", 4.0, parents=("plan",)) == 1
    play.end("deep", 5.0)
    play.end("right", 6.0)
    assert play.come("join", 7.0, parents=("deep", "right")) == 3
    graph = play.growing
    play.end("join", 8.0)
    closed = graph.close()
    assert closed is not None
    assert [stage.tool_time for stage in closed.stages] == [0.0, 3.0, 0.5, 1.0]


def test_unknown_parents_count_as_not_named() -> None:
    """Place and gap go by what had ended."""
    play = Played()
    play.come("a", 0.0, parents=("ghost",))
    play.end("a", 1.0)
    assert play.come("b", 4.0, parents=("ghost",)) == 1
    play.end("b", 5.0)
    graph = play.growing.close()
    assert graph is not None
    assert graph.stages[1].tool_time == 3.0


@pytest.mark.parametrize("first", [0, 1, 7, -3])
def test_a_stage_that_the_client_names_counts_from_its_first(first: int) -> None:
    """Whatever the first number; a gap in the numbers leaves no stage empty."""
    play = Played()
    assert [play.come("a", 0.0, stage=first), play.come("b", 0.1, stage=first)] == [0, 0]
    assert play.come("c", 0.2, stage=first + 1) == 1
    assert play.come("d", 0.3, stage=first + 1_000_000) == 2
    assert play.come("e", 0.4, stage=first - 1_000_000) == 0


def test_a_call_id_that_comes_again_names_the_newer_call() -> None:
    """Both are calls; who names it as parent means the last."""
    play = Played()
    play.come("r0", 0.0, call="x")
    play.end("r0", 1.0)
    play.come("r1", 1.0, call="x")
    play.end("r1", 2.0)
    assert play.come("r2", 2.0, call="y", parents=("x",)) == 2
    play.end("r2", 3.0)
    graph = play.growing.close()
    assert graph is not None
    assert graph.num_calls == 3


def test_a_clock_that_jumps_makes_a_tool_quick_or_slow() -> None:
    """Back gives 0 s, and forward no more than an hour."""
    play = Played()
    play.come("a", 100.0)
    play.end("a", 101.0)
    play.come("b", 50.0)
    play.end("b", 51.0)
    play.come("c", 1e9)
    play.end("c", 1e9 + 1)
    graph = play.growing.close()
    assert graph is not None
    assert [stage.tool_time for stage in graph.stages] == [0.0, 0.0, MAX_TOOL_TIME]


def test_a_call_that_failed_leaves_the_program_cut_short() -> None:
    """Its graph is none: it says nothing of how programs end."""
    play = Played()
    play.come("a", 0.0)
    play.end("a", 1.0)
    play.come("b", 1.0)
    play.growing.fail("b", by_client=False)
    play.come("c", 2.0)
    play.end("c", 3.0)
    assert play.growing.close() is None


def test_a_cancelled_call_is_left_out_if_the_program_goes_on() -> None:
    """A client that hedges ends its programs as others do."""
    play = Played()
    play.come("a", 0.0)
    play.come("twin", 0.0)
    play.growing.fail("twin", by_client=True)
    assert play.growing.close() is None
    play.end("a", 1.0)
    graph = play.growing.close()
    assert graph is not None
    assert graph.stages == (Stage(((10, 5),)),)


def test_endings_that_nobody_waits_for_are_ignored() -> None:
    """Of calls never seen, or that have ended before."""
    play = Played()
    play.come("a", 0.0)
    play.end("a", 1.0, 5)
    play.end("a", 2.0, 50)
    play.growing.fail("a", by_client=False)
    play.growing.fail("ghost", by_client=False)
    assert play.growing.answer("ghost", 1.0) is None
    graph = play.growing.close()
    assert graph is not None
    assert graph.stages == (Stage(((10, 5),)),)


def test_a_program_without_an_answer_is_none() -> None:
    """Neither is one with calls under way."""
    assert Growing().close() is None
    play = Played()
    play.come("a", 0.0)
    assert play.growing.close() is None


def test_the_last_call_is_known_when_the_client_says_so() -> None:
    """By the final marker, where the view has one."""
    play = Played()
    play.come("a", 0.0)
    play.come("b", 0.0, final=True)
    assert [call.is_last for call in play.growing.under_way.values()] == [False, True]


def test_a_program_of_too_many_calls_is_followed_but_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it holds stays bounded."""
    monkeypatch.setattr(growing, "MAX_CALLS", 5)
    play = Played()
    for i in range(20):
        play.come(f"c{i}", i, parents=(f"c{i - 1}",))
        play.end(f"c{i}", i + 0.5)
    assert play.growing.num_stages <= 6
    assert play.growing.num_answered == 20
    assert play.growing.close() is None
    assert play.growing.num_answered_in(play.growing.num_stages - 1) <= 5


def test_work_so_far_is_tools_and_the_longest_calls() -> None:
    """A stage without an answer takes what one is told to expect."""
    play = Played()
    play.come("a", 0.0)
    assert play.growing.spent(0, 30.0, 0.1) == pytest.approx(3.0)
    play.end("a", 1.0, 20)
    play.come("b", 3.0)
    play.come("c", 4.0)
    assert play.growing.spent(1, 30.0, 0.1) == pytest.approx(3.0 + 0.1 * 50)
    play.end("b", 5.0, 10)
    play.end("c", 6.0, 40)
    assert play.growing.spent(1, 30.0, 0.1) == pytest.approx(3.0 + 0.1 * 60)
