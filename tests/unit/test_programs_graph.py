"""Graphs of programs that ended: what is left after a stage, after a call, and in time."""

from __future__ import annotations

import random
from math import log1p

import pytest

from giusto.programs import budget
from giusto.programs.graph import MEASURES, Graph, Stage, new_tokens

FAN = Graph(
    "fan",
    [
        Stage(((100, 10),)),
        Stage(((200, 20), (300, 30), (400, 25)), tool_time=2.0),
        Stage(((500, 50),), tool_time=1.0),
    ],
)


def drawn(seed: int) -> Graph:
    draw = random.Random(seed)
    return Graph(
        None,
        [
            Stage(
                tuple(
                    (draw.randint(0, 900), draw.randint(1, 90)) for _ in range(draw.randint(1, 4))
                ),
                draw.uniform(0, 5),
            )
            for _ in range(draw.randint(1, 6))
        ],
    )


def test_what_is_left_after_a_stage() -> None:
    """Calls and tokens of all that follow; the path has the longest call of each stage."""
    assert FAN.after(0) == (2, 4, 1400, 125, 80, 3.0)
    assert FAN.after(1) == (1, 1, 500, 50, 50, 1.0)
    assert FAN.after(2) == (0,) * len(MEASURES)


def test_what_a_stage_still_lacks_is_as_its_calls_are_on_average() -> None:
    """Of three calls one was answered: two times a third of the stage is to come."""
    assert FAN.rest(1, 1) == (1, 3, 500 + 600, 50 + 50, 50, 1.0)
    assert FAN.rest(1, 3) == FAN.rest(1, 7) == FAN.after(1)


def test_what_is_left_after_so_many_calls() -> None:
    """In the order of their arrival, to nothing after the last."""
    rows = FAN.rows()
    assert [row[1] for row in rows] == [4, 3, 2, 1, 0]
    assert [row[3] for row in rows] == [125, 105, 75, 50, 0]
    assert [row[0] for row in rows] == [2, 1, 1, 1, 0]
    assert (rows[0], rows[3], rows[4]) == (FAN.after(0), FAN.after(1), FAN.after(2))


def test_calls_are_found_by_stage_and_number() -> None:
    """Counted through: each stage's calls begin where those of the one before end."""
    assert list(FAN.first) == [0, 1, 4, 5]
    assert (FAN.num_stages, FAN.num_calls) == (3, 5)
    assert len(FAN.log_prompts) == len(FAN.log_outputs) == 5


def test_what_is_new_in_a_prompt() -> None:
    """What it adds to the longest call before it that fits into it, or all of it."""
    assert new_tokens(500, [(100, 10), (400, 50), (490, 20)]) == 50
    assert new_tokens(500, [(490, 20)]) == new_tokens(500, []) == 500
    news = [100, 90, 190, 290, 500 - 425]
    assert list(FAN.log_news) == pytest.approx([log1p(tokens) for tokens in news])


def test_a_stage_weighs_by_its_tools_and_its_longest_call() -> None:
    """At today's seconds a token, prompts weighed in; the last stage's share is 1."""
    for seed in range(20):
        graph, time = drawn(seed), 0.05
        times = [
            stage.tool_time
            + time * max(budget.PROMPT_WEIGHT * prompt + output for prompt, output in stage.calls)
            for stage in graph.stages
        ]
        shares = [graph.share(stage, time) for stage in range(graph.num_stages)]
        assert shares == pytest.approx(budget.cumulative(times))


def test_tools_count_more_where_tokens_are_quick() -> None:
    """The first stage, all tokens, has a smaller share of a program with tools at higher speed."""
    assert FAN.share(0, 0.01) < FAN.share(0, 0.1)


@pytest.mark.parametrize("stages", [[], [Stage(())], [Stage(((1, 1),)), Stage(())]])
def test_a_graph_has_calls(stages: list[Stage]) -> None:
    """No stage is empty, and there is one."""
    with pytest.raises(ValueError, match="at least one"):
        Graph(None, stages)
