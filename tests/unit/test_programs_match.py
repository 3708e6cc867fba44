"""Likeness of programs by log lengths, kept up call by call against counting anew."""

from __future__ import annotations

import random
from math import exp, log

import pytest

from giusto.programs.graph import Graph, Stage
from giusto.programs.growing import Call
from giusto.programs.match import (
    HOPELESS,
    MEMORY,
    NEIGHBOURS,
    NEW_WEIGHT,
    OUTPUT_WEIGHT,
    PROMPT_WEIGHT,
    SIGMA,
    Match,
    kernel,
    weighted_median,
)

COME = PROMPT_WEIGHT + NEW_WEIGHT


def chain(*calls: tuple[int, int], app: str | None = None) -> Graph:
    return Graph(app, [Stage((call,)) for call in calls])


def come(match: Match, stage: int, number: int, prompt: int, new: int | None = None) -> None:
    """A call comes to this place; all of its prompt is new unless said."""
    match.arrive(Call(stage, number, prompt if new is None else new, is_last=False), prompt)


def end(match: Match, stage: int, number: int, output: int) -> None:
    match.answer(Call(stage, number, 0, is_last=False), output)


def test_the_kernel_is_half_a_natural_unit_wide() -> None:
    """1 at no difference, and a standard deviation is a factor of 1.65."""
    assert kernel(0.0) == 1.0
    assert kernel(SIGMA) == kernel(-SIGMA) == pytest.approx(exp(-0.5))
    assert kernel(log(10)) < 1e-4


def test_a_hundred_is_to_two_hundred_as_a_thousand_to_two() -> None:
    """Likeness goes by ratios, not by differences."""
    small, large = Match([chain((100, 9))]), Match([chain((1000, 9))])
    come(small, 0, 0, 201)
    come(large, 0, 0, 2001)
    ((_, few),), ((_, many),) = small.likeness(), large.likeness()
    assert few == pytest.approx(many, abs=0.01)


def test_an_unknown_output_says_nothing() -> None:
    """A call under way is compared by its prompt alone; its answer then weighs more."""
    like, unlike = chain((100, 10)), chain((100, 1000))
    match = Match([like, unlike])
    come(match, 0, 0, 100)
    assert dict(match.likeness()) == {like: 1.0, unlike: 1.0}
    end(match, 0, 0, 10)
    found = dict(match.likeness())
    assert found[like] == 1.0
    assert found[unlike] == pytest.approx(COME / (COME + OUTPUT_WEIGHT), abs=0.01)


def test_one_with_fewer_stages_is_dropped() -> None:
    """The program has gone past it."""
    short, long = chain((9, 9)), chain((9, 9), (9, 9))
    match = Match([short, long])
    come(match, 0, 0, 9)
    assert [graph for graph, _ in match.neighbours(going_on=True)] == [long]
    assert len(match.neighbours()) == len(match) == 2
    come(match, 1, 0, 9)
    assert [graph for graph, _ in match.neighbours()] == [long]
    assert match.neighbours(going_on=True) == []


def test_a_call_without_a_counterpart_scores_nothing() -> None:
    """Two calls side by side are half like one."""
    match = Match([chain((50, 5))])
    come(match, 0, 0, 50)
    come(match, 0, 1, 50)
    ((_, likeness),) = match.likeness()
    assert likeness == 0.5
    end(match, 0, 1, 5)
    ((_, likeness),) = match.likeness()
    assert likeness == pytest.approx(COME / (2 * COME + OUTPUT_WEIGHT))


def test_likeness_is_the_weighted_mean_of_kernels() -> None:
    """Kept up call by call it equals the mean over all that is known, counted anew."""
    draw = random.Random(7)

    def lengths() -> tuple[int, int]:
        return draw.randint(10, 3000), draw.randint(1, 800)

    def graph() -> Graph:
        return Graph(
            None, [Stage(tuple(lengths() for _ in range(draw.randint(1, 3)))) for _ in range(5)]
        )

    history = [graph() for _ in range(20)]
    match, known = Match(history), []
    for stage in range(5):
        for number in range(draw.randint(1, 3)):
            (prompt, output), new = lengths(), draw.randint(0, 900)
            come(match, stage, number, prompt, new)
            known.append((PROMPT_WEIGHT, "log_prompts", stage, number, prompt))
            known.append((NEW_WEIGHT, "log_news", stage, number, new))
            if draw.random() < 0.8:
                end(match, stage, number, output)
                known.append((OUTPUT_WEIGHT, "log_outputs", stage, number, output))
            for candidate, likeness in match.likeness():
                assert likeness == pytest.approx(slow_likeness(candidate, known, stage))


def slow_likeness(graph: Graph, known: list[tuple[float, str, int, int, int]], last: int) -> float:
    """The weighted mean of kernels, a stage counting a little less with each that followed."""
    total = most = 0.0
    for weight, which, stage, number, tokens in known:
        remembered = weight * MEMORY ** (last - stage)
        most += remembered
        if number < len(graph.stages[stage].calls):
            length = getattr(graph, which)[graph.first[stage] + number]
            total += remembered * kernel(log(1 + tokens) - length)
    return total / most


def test_the_most_alike_weigh_most() -> None:
    """Best first, and no more than are asked for."""
    graphs = [chain((100 + 10 * i, 10)) for i in range(NEIGHBOURS + 30)]
    match = Match(graphs)
    come(match, 0, 0, 101)
    found = match.neighbours()
    assert len(found) == NEIGHBOURS
    assert [graph for graph, _ in found] == graphs[:NEIGHBOURS]
    weights = [weight for _, weight in found]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == 1.0


def test_a_repeat_is_alike_to_the_token() -> None:
    """In all that is known, and no longer than that."""
    same, near = chain((100, 10), (200, 20)), chain((101, 10), (200, 25))
    match = Match([near, same])
    assert match.repeats() == []
    come(match, 0, 0, 100)
    end(match, 0, 0, 10)
    come(match, 1, 0, 200, 90)
    assert match.repeats() == [(same, 1.0)]
    assert match.repeats(going_on=True) == []
    assert match.neighbours()[0] == (same, 1.0)
    end(match, 1, 0, 24)
    assert match.repeats() == []
    assert len(match.neighbours()) == 2


def test_before_anything_is_known_all_weigh_the_same() -> None:
    """And where nothing is alike, too."""
    graphs = [chain((10, 10)), chain((20, 20))]
    match = Match(graphs)
    assert [weight for _, weight in match.neighbours()] == [1.0, 1.0]
    come(match, 0, 3, 10)
    assert [weight for _, weight in match.neighbours()] == [1.0, 1.0]
    assert Match([]).neighbours() == []


def test_the_hopeless_are_dropped_while_there_are_many() -> None:
    """A candidate far less alike than the best is asked no more."""
    many = [chain((100, 10 + i % 3)) for i in range(NEIGHBOURS)]
    odd = chain((100_000, 9000))
    match = Match([*many, odd])
    come(match, 0, 0, 100)
    end(match, 0, 0, 10)
    assert odd not in dict(match.likeness())
    assert all(likeness >= HOPELESS for _, likeness in match.likeness())
    few = Match([*many[:3], odd])
    come(few, 0, 0, 100)
    end(few, 0, 0, 10)
    assert odd in dict(few.likeness())


def test_the_weighted_median_repeats_values() -> None:
    """With whole weights it is the median of the values so often repeated."""
    assert weighted_median([(5.0, 1.0), (1.0, 3.0), (9.0, 1.0)]) == 1.0
    assert weighted_median([(1.0, 2.0), (4.0, 1.0), (8.0, 1.0)]) == 2.5
    assert weighted_median([(3.0, 0.1)]) == 3.0
    assert weighted_median([]) == 0.0
