"""From workload entries to submissions: what a request looks like to the scheduler."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from itertools import chain

from giusto.core.errors import ConfigError
from giusto.core.request import DEFAULT_CAP, ProgramRef, SamplingParams, Submission
from giusto.core.slo import SLO, Program
from giusto.workload.records import Entry, Piece


@dataclass(frozen=True, slots=True)
class Terms:
    """What an operator fixes for a class: `cap` on output for planning, weight, and priority.

    `slo` is promised to entries that bring none; None leaves them best effort.
    """

    cap: int = DEFAULT_CAP
    weight: float = 1.0
    priority: int = 0
    slo: SLO | None = None


USUAL = Terms()


class Asks:
    """Makes submissions. Texts are known by name: each gets a number, each token a place in it.

    Token k of text number n is n << 32 | k, so that equal pieces make equal blocks. The answer to
    an entry is the text that has the entry's id, whose number rides as the seed where somebody is
    to quote it.
    """

    def __init__(
        self,
        classes: Mapping[str, Terms] | None = None,
        *,
        quoted: Set[str] = frozenset(),
        has_text: bool = True,
    ) -> None:
        self._classes = classes or {}
        self._quoted = quoted
        self._has_text = has_text
        self._texts: dict[str, int] = {}

    def ask(self, entry: Entry, now: float) -> Submission:
        """The submission of an entry that arrives at `now`, seconds."""
        if entry.prompt_tokens is None:
            raise ConfigError(
                f"entry {entry.id} has a text but no prompt_tokens; the simulator counts tokens "
                "only: give prompt_tokens"
            )
        terms = self._classes.get(entry.service_class, USUAL)
        is_own = entry.slo is not None or not isinstance(entry.promise, Program)
        return Submission(
            id=entry.id,
            arrival=now,
            num_prompt_tokens=entry.prompt_tokens,
            prompt_ids=self._tokens(entry) if self._has_text else (),
            slo=entry.promise,
            has_own_slo=is_own,
            service_class=entry.service_class,
            weight=entry.weight * terms.weight,
            priority=terms.priority,
            tenant=entry.tenant,
            program=_ref(entry),
            cap=max(terms.cap, entry.max_tokens),
            sampling=SamplingParams(
                max_tokens=entry.max_tokens,
                seed=self._text(entry.id) if entry.id in self._quoted else None,
            ),
        )

    def _tokens(self, entry: Entry) -> tuple[int, ...]:
        rest = (entry.prompt_tokens or 0) - sum(piece.tokens for piece in entry.pieces)
        pieces = (*entry.pieces, Piece(f"{entry.id} own", 0, rest))
        return tuple(chain.from_iterable(self._range(piece) for piece in pieces))

    def _range(self, piece: Piece) -> range:
        first = (self._text(piece.source) << 32) + piece.start
        return range(first, first + piece.tokens)

    def _text(self, name: str) -> int:
        return self._texts.setdefault(name, len(self._texts) + 1)


def _ref(entry: Entry) -> ProgramRef | None:
    step = entry.step
    if step is None:
        return None
    return ProgramRef(
        step.program, step.call, step.parents, step.stage, step.is_final, step.app, step.deadline
    )
