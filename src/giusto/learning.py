"""What policies on a live engine learn with: length bounds by name, and the history of programs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from giusto.core.errors import ConfigError
from giusto.core.events import Estimated, Foretold
from giusto.core.request import Request, RequestView
from giusto.core.scheduler import Scheduler
from giusto.predict.base import Constant, LengthPredictor, Oracle, TrueLengths
from giusto.predict.conformal import Calibrated
from giusto.predict.estimates import ForestPredictor
from giusto.predict.feeds import Announcer
from giusto.predict.forest_client import ForestClient, ForestFeed
from giusto.predict.histogram import Histogram
from giusto.programs import store
from giusto.programs.matcher import HistoryMatcher

log = logging.getLogger(__name__)

#: How output lengths may be bounded. `constant:TOKENS` states the length.
PREDICTORS = ("histogram", "forest", "constant", "oracle")
DEFAULT_LENGTH = 256.0


def predictor(name: str, truth: TrueLengths | None = None) -> LengthPredictor:
    """A length predictor by name. Raises ConfigError, and for an oracle where nothing is known."""
    kind, _, value = name.partition(":")
    match kind:
        case "histogram" if not value:
            return Calibrated(Histogram())
        case "forest" if not value:
            return Calibrated(ForestPredictor(Histogram()))
        case "constant":
            try:
                return Constant(float(value or DEFAULT_LENGTH))
            except ValueError:
                raise ConfigError(f"lengths {name!r}: give constant:TOKENS") from None
        case "oracle" if not value:
            if truth is None:
                raise ConfigError("only a simulator knows the lengths that an oracle tells")
            return Oracle(truth)
    raise ConfigError(f"no length predictor {name!r}; there are {', '.join(PREDICTORS)}")


class Learners:
    """What a policy on a live engine learns with: length bounds and programs; a feed of both.

    In `folder` is what was learned before, and `close` leaves there what is known now.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.lengths = predictor(name)
        self._history = folder and folder / "programs.jsonl"
        self.programs = HistoryMatcher(store.load(self._history) if self._history else ())
        self._feed: Announcer | ForestFeed = Announcer(self.lengths)
        self._client: ForestClient | None = None
        if name == "forest":
            self._client = ForestClient(folder and folder / "lengths.npz")
            self._feed = ForestFeed(self._client, _prompt_ids)

    def follow(self, scheduler: Scheduler) -> None:
        for learner in (self.lengths, self.programs, self._feed):
            scheduler.subscribe(learner.observe)

    def poll(self, now: float) -> Iterator[Estimated | Foretold]:
        """What they found out since the last call."""
        yield from self._feed.poll(now)
        yield from self.programs.poll(now)

    def close(self, now: float) -> None:
        """Keep what was learned; a disk that is full costs the history, no more."""
        if self._client is not None:
            self._client.close()
        if self._history is None:
            return
        try:
            self._history.parent.mkdir(parents=True, exist_ok=True)
            store.save(self._history, self.programs.history.past(now))
        except OSError as error:
            log.warning("cannot keep the history of programs: %s", error)


def _prompt_ids(request: RequestView) -> Sequence[int]:
    """The prompt of a request that has just arrived, where the driver has text."""
    return request.token_ids if isinstance(request, Request) else ()
