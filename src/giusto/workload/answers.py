"""Hidden answer lengths for traces that recorded only a cap."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace

from giusto.core.errors import ConfigError
from giusto.workload.records import Entry


@dataclass(frozen=True, slots=True)
class Answers:
    """How long answers are whose length nobody recorded: at the cap, but for a share of them.

    `early` of them end before it, at 1 + floor((cap - 1) x u ** shape) with u uniform in [0, 1):
    shape 1 is an even spread, above 1 favours short ones.
    """

    early: float = 0.0
    shape: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.early <= 1 or not self.shape > 0:
            raise ConfigError(
                f"answers need a share from 0 to 1 and a shape above 0, got {self.early} and "
                f"{self.shape}"
            )

    def fill(self, entries: Iterable[Entry], seed: int) -> list[Entry]:
        """Give each entry without a length one that depends on its id and the seed alone."""
        return [
            entry
            if entry.output_tokens is not None
            else replace(entry, output_tokens=self._length(entry, seed))
            for entry in entries
        ]

    def _length(self, entry: Entry, seed: int) -> int:
        rng = random.Random(f"{seed} {entry.id}")
        if rng.random() >= self.early:
            return entry.max_tokens
        return 1 + int((entry.max_tokens - 1) * rng.random() ** self.shape)
