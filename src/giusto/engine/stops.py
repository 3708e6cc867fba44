"""Stop strings: where an answer ends that the model did not end itself. Pure text."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Feeds text through until one of the stop strings is complete.

    Holds back a tail that may be the beginning of a stop string, so that what was returned never
    has to be taken back. The earliest match wins; the stop string itself is not returned.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.is_stopped = False

    def feed(self, text: str) -> str:
        """Take more text; returns what is safe to show. Nothing after the stop."""
        if self.is_stopped:
            return ""
        text = self._held + text
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.is_stopped, self._held = True, ""
            return text[: min(starts)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """Return what was held back when the answer ended otherwise."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
