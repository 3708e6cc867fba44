"""Replica choice, pure: the same objects in the simulator and in a fleet."""

from __future__ import annotations

from collections.abc import Callable

from giusto.core.errors import ConfigError
from giusto.routing.base import Router
from giusto.routing.least_loaded import LeastLoaded
from giusto.routing.locality import Locality
from giusto.routing.round_robin import RoundRobin

ROUTERS: dict[str, Callable[[], Router]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "locality": Locality,
}


def make(name: str) -> Router:
    """Build a router by name; ConfigError lists what there is."""
    if name not in ROUTERS:
        raise ConfigError(f"unknown router {name!r} (there are: {', '.join(ROUTERS)})")
    return ROUTERS[name]()
