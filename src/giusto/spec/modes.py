"""Ways to speculate, by name: what is asked, who drafts, which candidates are verified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from giusto.core.errors import ConfigError
from giusto.core.latency import LatencyModel
from giusto.core.plan import Spec
from giusto.spec.drafter import Drafter
from giusto.spec.guessing import Guesser, ModelDrafter
from giusto.spec.lookup import LookupDrafter
from giusto.spec.ngram import NgramDrafter
from giusto.spec.select import Select, adaserve, by_value, everything
from giusto.spec.speculator import Speculator
from giusto.spec.suffix import SuffixDrafter
from giusto.spec.wishes import Adaptive, Control, Fixed, Valued, Wish


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to speculate.

    `drafter` makes the model-free drafter that proposes; None needs a draft model. `branching` says
    how many children the nodes of each level have, where that is fixed; empty leaves it to a beam.
    `calibrates`: chances are what verification found, not what the draft model believes.
    """

    name: str
    wish: Callable[[LatencyModel], Wish]
    select: Select
    drafter: Callable[[], Drafter] | None = None
    branching: tuple[int, ...] = ()
    calibrates: bool = False

    @property
    def needs_model(self) -> bool:
        """Whether it drafts with a model and with nothing else."""
        return self.drafter is None

    @property
    def takes_model(self) -> bool:
        """Whether a draft model is of any use to it."""
        return self.drafter is None or self.calibrates

    def drafting(self, guesser: Guesser) -> Drafter:
        """A drafter with this model: beside look-up where chances are calibrated, else alone."""
        look_up = LookupDrafter() if self.calibrates else None
        return ModelDrafter(guesser, look_up=look_up, branching=self.branching)

    def speculator(self, latency: LatencyModel, draft: Drafter | None = None) -> Speculator:
        """Put a drafter to work: `draft`, or else the mode's own. ConfigError without any."""
        if draft is None:
            if self.drafter is None:
                raise ConfigError(f"speculation {self.name} drafts with a model, and there is none")
            draft = self.drafter()
        return Speculator(draft, self.select, latency)


#: Candidates that all requests of a step share in a mode that weighs them.
_MOST_NODES = 512
#: SpecInfer's static tree as AdaServe compares with it: 23 tokens.
_STATIC = (1, 1, 3, 1, 1, 1, 1, 1, 1)


def _ngram(length: int) -> Mode:
    spec = Spec(depth=length, max_nodes=length)
    return Mode("ngram", lambda _: Fixed(spec), everything, NgramDrafter)


def _suffix(length: int) -> Mode:
    spec = Spec(depth=length, max_nodes=length, width=4)
    return Mode("suffix", lambda _: Fixed(spec), everything, SuffixDrafter)


def _chain(length: int) -> Mode:
    spec = Spec(depth=length, max_nodes=length)
    return Mode("chain", lambda _: Fixed(spec), everything)


def _static(nodes: int) -> Mode:
    spec = Spec(depth=len(_STATIC), max_nodes=nodes, width=max(_STATIC))
    return Mode("static", lambda _: Fixed(spec), everything, branching=_STATIC)


def _giusto(length: int, *, tolls: bool = False) -> Mode:
    spec = Spec(depth=length, max_nodes=2 * length, width=3)
    return Mode(
        "giusto",
        lambda latency: Valued(spec, _MOST_NODES, latency, tolls),
        by_value,
        LookupDrafter,
        calibrates=True,
    )


#: Modes by name, each with the length of its proposals where none is given, or the size of a tree.
_MODES: dict[str, tuple[Callable[[int], Mode], int]] = {
    "ngram": (_ngram, 4),
    "suffix": (_suffix, 16),
    "chain": (_chain, 4),
    "static": (_static, 23),
    "giusto": (_giusto, 8),
}
OFF = "off"
NAMES = (OFF, *_MODES, "adaserve")
_LONGEST = 64


def mode(name: str, control: Control | None = None, *, has_model: bool = False) -> Mode | None:
    """A mode by name, `name:length` for proposals of another length; None for `off`.

    `control` has the constants of `adaserve`; with `has_model` a draft model stands beside the
    look-up of a mode that has one. Raises ConfigError for a name that is not there, or a
    length that is no count.
    """
    kind, colon, text = name.partition(":")
    if name == OFF:
        return None
    if name == "adaserve":
        constants = control or Control()
        return Mode(name, lambda latency: Adaptive(constants, latency), adaserve)
    if kind not in _MODES:
        raise ConfigError(f"no speculation {name!r}; there are {', '.join(NAMES)}")
    make, length = _MODES[kind]
    if colon:
        if not text.isdecimal() or not 1 <= int(text) <= _LONGEST:
            raise ConfigError(f"speculation {name!r}: give {kind}:LENGTH, from 1 to {_LONGEST}")
        length = int(text)
    return _giusto(length, tolls=True) if kind == "giusto" and has_model else make(length)
