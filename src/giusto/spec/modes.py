"""Ways to speculate, by name: which drafter, what is asked of it, which candidates are verified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from giusto.core.errors import ConfigError
from giusto.core.latency import LatencyModel
from giusto.core.plan import Spec
from giusto.spec.drafter import Drafter
from giusto.spec.lookup import LookupDrafter
from giusto.spec.ngram import NgramDrafter
from giusto.spec.select import Select, by_value, everything
from giusto.spec.speculator import Speculator
from giusto.spec.suffix import SuffixDrafter


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to speculate.

    `spec` is the most that a request may ask for; `nodes` is how many candidates all requests of a
    step share, so that fewer are drafted for each the more there are.
    """

    spec: Spec
    make_drafter: Callable[[], Drafter]
    select: Select
    nodes: int
    summary: str

    def speculator(self, latency: LatencyModel) -> Speculator:
        return Speculator(self.make_drafter(), self.select, latency)


#: Candidates of a step in a mode that weighs them, before the step's own room.
_MOST_NODES = 128


def _ngram(length: int) -> Mode:
    return Mode(
        Spec(depth=length, max_nodes=length),
        NgramDrafter,
        everything,
        length * 4096,
        "a chain of what followed the same tokens before (vLLM's ngram)",
    )


def _suffix(length: int) -> Mode:
    return Mode(
        Spec(depth=length, max_nodes=length, width=4),
        SuffixDrafter,
        everything,
        length * 4096,
        "a tree of what followed before, as large as the match is long (SuffixDecoding)",
    )


def _giusto(length: int) -> Mode:
    return Mode(
        Spec(depth=length, max_nodes=2 * length, width=3),
        LookupDrafter,
        by_value,
        _MOST_NODES,
        "candidates that promises need, then those that pay for their verification",
    )


#: Modes by name, each with the length of its proposals where none is given.
_MODES: dict[str, tuple[Callable[[int], Mode], int]] = {
    "ngram": (_ngram, 4),
    "suffix": (_suffix, 16),
    "giusto": (_giusto, 8),
}
OFF = "off"
NAMES = (OFF, *_MODES)
_LONGEST = 64


def mode(name: str) -> Mode | None:
    """A mode by name, `name:length` for proposals of another length; None for `off`.

    Raises ConfigError for a name that is not there, or a length that is no count.
    """
    kind, colon, text = name.partition(":")
    if name == OFF:
        return None
    if kind not in _MODES:
        raise ConfigError(f"no speculation {name!r}; there are {', '.join(NAMES)}")
    make, length = _MODES[kind]
    if colon:
        if not text.isdecimal() or not 1 <= int(text) <= _LONGEST:
            raise ConfigError(f"speculation {name!r}: give {kind}:LENGTH, from 1 to {_LONGEST}")
        length = int(text)
    return make(length)
