"""The forest's own process: `python -m giusto.predict.forest_worker FILE FD`, run by its client.

FILE keeps the sample across restarts, or is empty; FD is an inherited socket. JSON lines come in
(`{"ask": id, "emitted": n, "known": [...]}`, `{"learn": length, "known": [...]}`) and go out
(`{"id": id, "lengths": [...]}`, `{"fitted": rows, "seconds": s}`). Ends when the socket closes.

It is nice to the engine beside it: the lowest priority, one thread, and never more than a tenth of
a core once it has started, half of it for fits and half for answers. Who asks meanwhile is answered
together.
"""

from __future__ import annotations

import json
import logging
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from giusto.core.clock import Clock, WallClock
from giusto.predict.forest import (
    MIN_ROWS,
    Forest,
    ForestSample,
    load_library,
    load_or_set_aside,
)
from giusto.predict.forest_client import Lines

log = logging.getLogger(__name__)

#: Shares of a core.
FIT_SHARE = 0.05
ANSWER_SHARE = 0.05
#: Seconds from one fit to the next, at least.
FIT_EVERY = 60.0
#: Requests that may wait for an answer; of more, the oldest go without.
MAX_PENDING = 4096


class Model(Protocol):
    """What the desk needs of a forest."""

    @property
    def is_fitted(self) -> bool: ...
    def fit(self, sample: ForestSample) -> None: ...
    def quantiles(self, asks: Sequence[tuple[Sequence[float], int]]) -> list[tuple[float, ...]]: ...


@dataclass(slots=True)
class Budget:
    """When work of one kind may begin: its cost stays below `share` of the time between begins."""

    share: float
    least_gap: float = 0.0
    free_at: float = -math.inf

    def spend(self, began: float, cost: float) -> None:
        """Book `cost` seconds of a core on work that began at `began`."""
        self.free_at = began + max(self.least_gap, cost / self.share)


class Desk:
    """The worker without its process: messages in, work when the budgets allow, messages out.

    `now` is the time in seconds, `cpu` tells the seconds of a core used so far.
    """

    def __init__(
        self,
        model: Model,
        sample: ForestSample,
        cpu: Callable[[], float],
        save: Callable[[ForestSample], None] = lambda sample: None,
    ) -> None:
        self._model = model
        self._sample = sample
        self._cpu = cpu
        self._save = save
        self._pending: dict[str, tuple[list[float], int]] = {}
        self._fits = Budget(FIT_SHARE, FIT_EVERY)
        self._answers = Budget(ANSWER_SHARE)
        self._is_news = len(sample) > 0
        self._is_saved = True

    def receive(self, message: dict[str, Any]) -> None:
        if "learn" in message:
            self._sample.add(message["known"], message["learn"])
            self._is_news, self._is_saved = True, False
            return
        self._pending.pop(message["ask"], None)
        self._pending[message["ask"]] = (message["known"], message["emitted"])
        if len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]

    def work(self, now: float) -> list[dict[str, Any]]:
        """Do what is due, answers before a fit."""
        replies: list[dict[str, Any]] = []
        if self._has_asks and now >= self._answers.free_at:
            replies += self._answer(now)
        if self._has_news and now >= self._fits.free_at:
            replies.append(self._fit(now))
        return replies

    def wait(self, now: float) -> float | None:
        """Seconds until there is something to do; None: until a message comes."""
        times = []
        if self._has_asks:
            times.append(self._answers.free_at)
        if self._has_news:
            times.append(self._fits.free_at)
        return max(0.0, min(times) - now) if times else None

    def close(self) -> None:
        """Keep what was learned since the last fit."""
        if not self._is_saved:
            self._save(self._sample)
            self._is_saved = True

    @property
    def _has_asks(self) -> bool:
        return bool(self._pending) and self._model.is_fitted

    @property
    def _has_news(self) -> bool:
        return self._is_news and len(self._sample) >= MIN_ROWS

    def _answer(self, now: float) -> list[dict[str, Any]]:
        asks, self._pending = self._pending, {}
        before = self._cpu()
        answers = self._model.quantiles(list(asks.values()))
        self._answers.spend(now, self._cpu() - before)
        return [
            {"id": name, "lengths": lengths} for name, lengths in zip(asks, answers, strict=True)
        ]

    def _fit(self, now: float) -> dict[str, Any]:
        self._is_news = False
        before = self._cpu()
        self._model.fit(self._sample)
        self.close()
        cost = self._cpu() - before
        self._fits.spend(now, cost)
        return {"fitted": len(self._sample), "seconds": cost}


def serve(connection: socket.socket, desk: Desk, clock: Clock) -> None:
    """Work until the other end closes."""
    lines = Lines()
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    try:
        while True:
            wait = desk.wait(clock.now())
            if poll.poll(None if wait is None else math.ceil(1000 * wait)):
                data = connection.recv(1 << 16)
                if not data:
                    break
                for message in lines.feed(data):
                    desk.receive(message)
            for reply in desk.work(clock.now()):
                connection.sendall(json.dumps(reply).encode() + b"\n")
    except ConnectionError:
        log.debug("the other end went away")
    desk.close()


def save_to(path: Path) -> Callable[[ForestSample], None]:
    """Save there; a full disk costs the history, not the forecasts."""

    def save(sample: ForestSample) -> None:
        try:
            sample.save(path)
        except OSError as error:
            log.warning("cannot keep the sample of lengths in %s: %s", path, error.strerror)

    return save


def main() -> None:
    # Whoever started it decides when it ends, by closing the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(19)
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    file, fd = sys.argv[1:]
    # A missing library shows at once, not at the first fit.
    load_library()
    path = Path(file) if file else None
    sample = load_or_set_aside(path) if path else ForestSample()
    desk = Desk(Forest(), sample, time.process_time, save_to(path) if path else lambda sample: None)
    with socket.socket(fileno=int(fd)) as connection:
        serve(connection, desk, WallClock())


if __name__ == "__main__":
    main()
