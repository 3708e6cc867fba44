"""A step to be planned: how long it may last, and what that is spent on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from giusto.policies.base import FLOOR_SHARE
from giusto.policies.giusto.choice import Job
from giusto.policies.giusto.cost import Cost
from giusto.policies.giusto.decodes import Batch

#: What takes no more than this share of a step costs nothing.
FREE_SHARE = 0.01


class Spending(NamedTuple):
    """Decodes without a promise that take part, and prompt tokens.

    prefill: in all, chosen prompts first as far as the step may go; floor: for who starves.
    """

    num_rest: int
    prefill: int
    floor: int


@dataclass(frozen=True, slots=True)
class Step:
    """Prices, who decodes, and seconds: `base` for the decodes to keep alone, `most` for the sake
    of promises, `some` for others. `limit` prompt tokens fit into any step."""

    cost: Cost
    batch: Batch
    base: float
    most: float
    some: float
    limit: int
    can_pause: bool

    def spend(self, chosen: Sequence[Job]) -> Spending:
        """Others share what is spare beside the chosen prompts, and at least a twentieth of what
        those and the kept take, or, while the machine keeps up, of the longest step that they bear.
        """
        cost, num_kept, num_rest = self.cost, len(self.batch.kept), len(self.batch.rest)
        asked = sum(job.work for job in chosen) / cost.per_prefill
        for_chosen = min(round(asked), self._prompt_tokens(num_kept, self.most))
        promised = cost.step_time(num_kept, for_chosen)
        least = FLOOR_SHARE * (self.most if self.batch.keep_up else promised)
        if self.can_pause:
            spare = max(self.some, promised + least)
            num_rest = cost.decodes(spare, num_kept + num_rest, for_chosen) - num_kept
        takes = cost.step_time(num_kept + num_rest)
        free = max(self.some, (1 + FREE_SHARE) * takes)
        floor = max(1, self._prompt_tokens(num_kept, self.base + least))
        prefill = max(for_chosen + floor, self._prompt_tokens(num_kept + num_rest, free))
        return Spending(num_rest, prefill, prefill - for_chosen)

    def _prompt_tokens(self, num_decodes: int, seconds: float) -> int:
        return self.cost.prompt_tokens(num_decodes, seconds, self.limit)
