"""Routers: pure choice over what replicas look like from outside."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from giusto import routing
from giusto.core.errors import ConfigError
from giusto.routing import locality
from giusto.routing.base import Router, Visitor
from giusto.routing.least_loaded import LeastLoaded
from giusto.routing.locality import Locality
from giusto.routing.round_robin import RoundRobin


@dataclass
class Seen:
    """A replica from outside."""

    index: int = 0
    running: int = 0
    waiting: int = 0
    queued_tokens: int = 0
    free_blocks: int = 100
    step_time: float = 0.01


def fleet(*loads: int) -> list[Seen]:
    return [Seen(index, running=load) for index, load in enumerate(loads)]


def visitor(name: str = "v", tokens: int = 1000, **more: str) -> Visitor:
    return Visitor(name, tokens, **more)


def test_every_router_has_a_name() -> None:
    """`make` builds each, and lists them when it is asked for another."""
    assert set(routing.ROUTERS) == {"round-robin", "least-loaded", "locality"}
    for name, router in routing.ROUTERS.items():
        assert isinstance(routing.make(name), router)
    with pytest.raises(
        ConfigError, match=r"unknown router 'best'.*round-robin, least-loaded, locality"
    ):
        routing.make("best")


@pytest.mark.parametrize("name", routing.ROUTERS)
def test_choices_lie_within_the_fleet(name: str) -> None:
    """Also when the fleet shrinks between two choices; the same sights give the same choices."""

    def choices(router: Router) -> list[int]:
        seen = []
        for k in range(60):
            replicas = fleet(*(k * 7 % (n + 2) for n in range(1 + k % 4)))
            chosen = router.choose(visitor(f"v{k}", 100 * (k % 5), session=f"s{k % 6}"), replicas)
            assert 0 <= chosen < len(replicas)
            seen.append(chosen)
        return seen

    assert choices(routing.make(name)) == choices(routing.make(name))


def test_round_robin_looks_at_nothing() -> None:
    """One after the other, however loaded."""
    router = RoundRobin()
    replicas = fleet(9, 0, 4)
    assert [router.choose(visitor(), replicas) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_least_loaded_counts_running_and_waiting() -> None:
    """Ties go to who has fewer queued tokens, then to the first."""
    router = LeastLoaded()
    assert router.choose(visitor(), fleet(3, 1, 2)) == 1
    assert router.choose(visitor(), [Seen(0, 1, 2), Seen(1, 2, 0), Seen(2, 0, 3)]) == 1
    tied = [Seen(0, 1, 1, 500), Seen(1, 1, 1, 300), Seen(2, 2, 0, 300)]
    assert router.choose(visitor(), tied) == 1
    assert router.choose(visitor(), fleet(2, 2)) == 0


def test_locality_goes_back_to_where_the_session_was() -> None:
    """A session keeps its replica though another is less loaded; so does a long prefix."""
    router = Locality()
    assert router.choose(visitor("a", session="s"), fleet(1, 0)) == 1
    assert router.choose(visitor("b", session="s"), fleet(0, 1)) == 1
    assert router.choose(visitor("c", prefix="system"), fleet(1, 0)) == 1
    assert router.choose(visitor("d", prefix="system"), fleet(0, 1)) == 1
    assert router.choose(visitor("e", prefix="other"), fleet(0, 1)) == 0


def test_locality_sends_who_shares_nothing_to_the_least_loaded() -> None:
    """No session and no prefix, or too short a prompt; short calls of a session stay in it."""
    router = Locality()
    for loads in ((1, 0), (0, 1)):
        least = loads.index(0)
        assert router.choose(visitor(), fleet(*loads)) == least
        assert router.choose(visitor(tokens=255, prefix="system"), fleet(*loads)) == least
    assert router.choose(visitor(tokens=10, session="s"), fleet(1, 0)) == 1
    assert router.choose(visitor(tokens=10, session="s"), fleet(0, 1)) == 1


def test_locality_leaves_a_hot_replica() -> None:
    """A pin is moved when its replica has more than twice the mean load, and stays moved."""
    router = Locality()
    assert router.choose(visitor(session="s"), fleet(0, 1, 1)) == 0
    assert router.choose(visitor(session="s"), fleet(6, 2, 1)) == 0
    assert router.choose(visitor(session="s"), fleet(7, 2, 1)) == 2
    assert router.choose(visitor(session="s"), fleet(0, 2, 3)) == 2


def test_locality_does_not_spread_a_session_over_an_idle_fleet() -> None:
    """Two requests of one session on an idle fleet are no overload."""
    router = Locality()
    assert router.choose(visitor(session="s"), fleet(0, 0, 0)) == 0
    assert router.choose(visitor(session="s"), fleet(2, 0, 0)) == 0


def test_locality_forgets_the_longest_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory is bounded."""
    monkeypatch.setattr(locality, "CAPACITY", 2)
    router = Locality()
    for name, loads in (("a", (0, 1)), ("b", (0, 1)), ("a", (0, 1)), ("c", (0, 1))):
        router.choose(visitor(session=name), fleet(*loads))
    assert router.choose(visitor(session="a"), fleet(1, 0)) == 0
    assert router.choose(visitor(session="b"), fleet(1, 0)) == 1


def test_sessions_spread() -> None:
    """Many sessions share a fleet evenly when each arrival adds to its replica's load."""
    router = Locality()
    replicas = fleet(0, 0, 0, 0)
    for k in range(200):
        chosen = router.choose(visitor(session=f"s{k % 50}"), replicas)
        replicas[chosen].running += 1
    counts = Counter({replica.index: replica.running for replica in replicas})
    assert max(counts.values()) <= 2 * 50
    assert min(counts.values()) >= 25
