"""What history keeps: by popularity, by kind, within its capacity."""

from __future__ import annotations

import pytest

from giusto.programs.graph import Graph, Stage
from giusto.programs.history import (
    HOURLY,
    MOST_MEDOIDS,
    PER_MEDOID,
    History,
    Past,
    similarity,
)


def chain(*calls: tuple[int, int], app: str | None = "a") -> Graph:
    return Graph(app, [Stage((call,)) for call in calls])


def test_popularity_loses_a_tenth_with_every_hour() -> None:
    """Brought up to date where it is read; a clock that jumps back takes nothing off."""
    past = Past(chain((1, 1)), 2.0, stamp=0.0)
    assert past.popularity_at(3600.0) == pytest.approx(2.0 * HOURLY)
    assert past.popularity_at(-1e6) == 2.0
    past.settle(7200.0, 0.5)
    assert past.popularity == pytest.approx(2.0 * HOURLY**2 + 0.5)
    assert Past(chain((1, 1)), 2.0).popularity_at(1e9) == 2.0


def test_beyond_the_capacity_the_least_popular_goes() -> None:
    """The older of two that nothing was like, for it has lost more."""
    history = History(capacity=3)
    graphs = [chain((10, 10 + i)) for i in range(3)]
    for hour, graph in enumerate(graphs):
        history.add(graph, 3600.0 * hour)
    history.credit([(graphs[1], 1.0)], 7200.0)
    newest = chain((10, 99))
    history.add(newest, 3 * 3600.0)
    assert history.candidates("a") == [graphs[1], graphs[2], newest]


def test_credit_is_shared_by_weight() -> None:
    """One for each program that ended; those already gone get none."""
    one, other, gone = chain((1, 1)), chain((2, 2)), chain((3, 3))
    history = History([Past(one), Past(other)])
    history.credit([(one, 3.0), (other, 1.0), (gone, 4.0)], 0.0)
    assert [past.popularity for past in history.past()] == [1.375, 1.125]
    history.credit([], 0.0)
    assert [past.popularity for past in history.past()] == [1.375, 1.125]


def test_what_was_read_ages_from_the_first_ending_on() -> None:
    """The clock of the run that wrote it is not this one's."""
    history = History([Past(chain((1, 1)), 2.0)])
    history.add(chain((2, 2)), 1e9)
    assert [past.popularity for past in history.past(1e9 + 3600)] == [
        pytest.approx(2.0 * HOURLY),
        pytest.approx(HOURLY),
    ]


def test_different_apps_are_not_alike_when_both_state_one() -> None:
    """A program that states none may be like any, and any like it."""
    mine, theirs, anyones = chain((1, 1)), chain((1, 1), app="b"), chain((1, 1), app=None)
    history = History([Past(mine), Past(theirs), Past(anyones)])
    assert history.candidates("a") == [mine, anyones]
    assert history.candidates("c") == [anyones]
    assert history.candidates(None) == [mine, theirs, anyones]


def test_a_medoid_goes_last() -> None:
    """A rare kind outlives a flood of another, however unpopular."""
    history = History(capacity=PER_MEDOID + 20)
    for i in range(PER_MEDOID - 1):
        history.add(chain((100, 10 + i % 3)), 0.0)
    rare = chain((9000, 5), (9000, 5), (9000, 5))
    history.add(rare, 0.0)
    assert rare in history.medoids("a")
    for i in range(400):
        history.add(chain((100, 10 + i % 3)), 3600.0 * i)
    assert len(history) == history.capacity
    assert rare in history.candidates("a")


def test_there_are_more_medoids_where_there_is_more_history() -> None:
    """One, and one more for each hundred of an app, at most six."""
    history = History(capacity=2000)
    for i in range(7 * PER_MEDOID):
        history.add(chain((10 + i, 10)), 0.0)
        expected = min(MOST_MEDOIDS, 1 + (i + 1) // PER_MEDOID)
        assert len(history.medoids("a")) == expected


def test_a_medoid_gives_way_to_one_more_like_its_group() -> None:
    """An odd first program does not stand for those that follow it."""
    odd = chain((1, 10_000))
    history = History([Past(odd)])
    for i in range(5):
        history.add(chain((500, 50 + i)), 0.0)
    (medoid,) = history.medoids("a")
    assert medoid is not odd


def test_when_all_are_medoids_the_least_popular_goes() -> None:
    """The capacity holds even with an app for each program; the newest stays."""
    history = History(capacity=3)
    graphs = [chain((1, 1), app=f"app-{i}") for i in range(6)]
    for i, graph in enumerate(graphs):
        history.add(graph, 3600.0 * i)
    assert history.candidates(None) == graphs[3:]
    assert history.medoids("app-0") == []
    assert history.medoids("app-5") == [graphs[5]]


def test_an_app_whose_medoid_went_gets_another() -> None:
    """From its next program."""
    history = History(capacity=2)
    history.add(chain((1, 1)), 0.0)
    history.add(chain((3, 3), app="b"), 3600.0)
    history.add(chain((2, 2)), 7200.0)
    assert history.medoids("a") == []
    last = chain((4, 4))
    history.add(last, 10800.0)
    assert history.medoids("a") == [last]
    assert len(history) == 2


def test_whole_programs_are_alike_by_calls_and_by_length() -> None:
    """The same program is wholly alike, one twice as long by half."""
    once, twice = chain((100, 10), (200, 20)), chain(*[(100, 10), (200, 20)] * 2)
    assert similarity(once, once) == 1.0
    assert similarity(once, twice) == similarity(twice, once) == 0.5
    assert similarity(once, chain((100, 1000), (200, 2000))) == pytest.approx(0.5, abs=0.01)


def test_a_history_holds_something() -> None:
    """No capacity below one."""
    with pytest.raises(ValueError, match="capacity 0"):
        History(capacity=0)
