"""What an app's programs had left after so many calls, and whether matching beats it."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

import pytest

from giusto.programs.graph import CALLS, OUTPUT, Graph, Stage
from giusto.programs.quantiles import APPS, EXACT, WINDOW, Quantiles, bucket, middle
from giusto.programs.trust import ENOUGH, Claim, Trust


def chain(outputs: list[int], app: str | None = "a") -> Graph:
    return Graph(app, [Stage(((10, output),), 1.0) for output in outputs])


def learned(*graphs: Graph) -> Quantiles:
    quantiles = Quantiles()
    for graph in graphs:
        quantiles.observe(graph)
    return quantiles


def test_the_median_of_what_was_left_after_so_many_calls() -> None:
    """Those that had ended by then are not asked; those that ended just then had nothing left."""
    quantiles = learned(chain([10, 20]), chain([10, 20, 40]), chain([10, 20, 60, 80]))
    ahead = quantiles.ahead("a", 1)
    assert ahead == (2, 2, 20, 60, 60, 2.0)
    two = quantiles.ahead("a", 2)
    assert two is not None
    assert two[OUTPUT] == median([0, 40, 140])
    on = quantiles.ahead("a", 2, going_on=True)
    assert on is not None
    assert on[OUTPUT] == median([40, 140])


def test_any_quantile_may_be_asked() -> None:
    """Of each measure for itself."""
    quantiles = learned(*[chain([5, tokens]) for tokens in (10, 20, 30, 40, 50)])
    for quantile, expected in ((0.0, 10), (0.25, 20), (0.9, 46), (1.0, 50)):
        ahead = quantiles.ahead("a", 1, quantile=quantile)
        assert ahead is not None
        assert ahead[OUTPUT] == pytest.approx(expected)
    assert middle([7.0], 0.5) == 7.0


def test_apps_are_kept_apart() -> None:
    """None stands for all of them; of an app never seen nothing is known."""
    quantiles = learned(chain([1, 10], "a"), chain([1, 30], "b"))
    assert [quantiles.rows(app, 1)[0][OUTPUT] for app in ("a", "b")] == [10, 30]
    assert [row[OUTPUT] for row in quantiles.rows(None, 1)] == [10, 30]
    assert quantiles.ahead("c", 1) is None
    assert Quantiles().ahead(None, 1) is None


def test_a_program_longer_than_any_known_goes_by_the_longest() -> None:
    """By what was left in the last bucket that any came to."""
    quantiles = learned(chain([10] * 5), chain([10] * 8))
    assert [row[CALLS] for row in quantiles.rows("a", 50)] == [0]
    assert [row[CALLS] for row in quantiles.rows("a", 50, going_on=True)] == [1]
    assert quantiles.rows("a", 0) == quantiles.rows("a", 1)


def test_buckets_grow_with_the_count() -> None:
    """Told apart at first, then by a sixteenth; none is skipped by a program that goes on."""
    assert [bucket(done) for done in range(1, EXACT + 2)] == list(range(1, EXACT + 2))
    numbers = [bucket(done) for done in range(1, 5000)]
    assert numbers == sorted(numbers)
    assert numbers[-1] < 130
    assert max(b - a for a, b in pairwise(numbers)) == 1


def test_a_program_enters_a_bucket_once() -> None:
    """With what it had left on entering."""
    quantiles = learned(chain([1] * 100))
    assert [row[CALLS] for row in quantiles.rows("a", 60)] == [
        100 - min(done for done in range(1, 101) if bucket(done) == bucket(60))
    ]


def test_no_more_is_kept_than_said() -> None:
    """The last programs of the last apps."""
    quantiles = learned(*[chain([1, tokens]) for tokens in range(WINDOW + 10)])
    assert [row[OUTPUT] for row in quantiles.rows("a", 1)] == list(range(10, WINDOW + 10))
    for i in range(APPS):
        quantiles.observe(chain([1, 1], f"app-{i}"))
    assert quantiles.rows("a", 1) == []
    assert quantiles.rows(f"app-{APPS - 1}", 1) != []
    assert len(quantiles.rows(None, 1)) == WINDOW


# Trust


def claims(matched: float, counted: float, count: int = ENOUGH) -> list[Claim]:
    return [Claim(0, matched, counted)] * count


def test_the_match_is_trusted_until_counting_was_closer() -> None:
    """And again once it is the closer one; by the median over the last programs."""
    trust = Trust()
    assert trust.in_match("a")
    trust.judge("a", claims(50, 90, ENOUGH - 1), 100)
    assert trust.in_match("a")
    trust.judge("a", claims(50, 90), 100)
    assert not trust.in_match("a")
    assert trust.in_match("b")
    trust.judge("a", claims(95, 90, 500), 100)
    assert trust.in_match("a")


def test_a_little_worse_may_be_chance() -> None:
    """The half of it is let pass."""
    trust = Trust()
    trust.judge("a", claims(71, 80), 100)
    assert trust.in_match("a")
    trust.judge("a", claims(69, 80, 1000), 100)
    assert not trust.in_match("a")


def test_a_claim_counts_for_the_calls_until_the_next() -> None:
    """One that stood for a hundred calls outweighs those that stood for one each."""
    trust = Trust()
    trust.judge("a", [*claims(90, 50, ENOUGH), Claim(0, 10, 90, calls=2 * ENOUGH)], 100)
    assert not trust.in_match("a")


def test_a_claim_with_nothing_left_is_not_judged() -> None:
    """A relative error of nothing is none."""
    trust = Trust()
    trust.judge("a", [Claim(100, 9.0, 0.0)] * ENOUGH, 100)
    assert trust.in_match("a")


def test_trust_is_kept_for_the_last_apps() -> None:
    """Others begin anew."""
    trust = Trust()
    trust.judge("a", claims(50, 90), 100)
    for i in range(APPS):
        trust.judge(f"app-{i}", [], 1)
    assert trust.in_match("a")
