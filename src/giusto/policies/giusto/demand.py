"""What comes in, as work: how long steps must be for the machine to keep up with it."""

from __future__ import annotations

import math

from giusto.core.events import Admitted, Arrived
from giusto.policies.bounds import MeanLengths
from giusto.policies.giusto.cost import Cost

#: Seconds in which what came in counts for a third.
MEMORY = 30.0
#: Seconds of arrivals that tell nothing yet of a rate.
TOO_SHORT = 1.0
#: Halvings of the span in which the pace is sought: to a hundredth of it.
HALVINGS = 7


class Demand:
    """Prompt tokens and requests a second, fading with time; answers as long as answers were."""

    def __init__(self) -> None:
        self._lengths = MeanLengths()
        self._began = math.inf
        self._now = 0.0
        self._prompt_tokens = 0.0
        self._requests = 0.0

    def observe(self, event: object) -> None:
        self._lengths.observe(event)
        match event:
            case Arrived(request, now):
                self._began = min(self._began, now)
                self._fade(now)
                self._prompt_tokens += request.num_prompt_tokens
                self._requests += 1
            case Admitted(_, now, cached_tokens):
                self._fade(now)
                self._prompt_tokens = max(0.0, self._prompt_tokens - cached_tokens)

    def pace(self, cost: Cost, stride: float, longest: float, now: float) -> float:
        """Seconds of the shortest steps in which as much is computed as comes in.

        `stride` tokens come from a decode. 0 where steps of up to `longest` seconds do not keep up,
        and while there is nothing to tell from.
        """
        span = MEMORY * (1 - math.exp(-max(0.0, now - self._began) / MEMORY))
        if span < TOO_SHORT:
            return 0.0
        lately = self._left(now) / span
        prompts = self._prompt_tokens * lately
        decodes = self._requests * self._lengths.mean * lately / stride

        def keeps_up(seconds: float) -> bool:
            num_decodes, num_tokens = math.ceil(decodes * seconds), math.ceil(prompts * seconds)
            return cost.step_time(num_decodes, num_tokens) <= seconds

        if not keeps_up(longest):
            return 0.0
        short, long = 0.0, longest
        for _ in range(HALVINGS):
            middle = (short + long) / 2
            short, long = (short, middle) if keeps_up(middle) else (middle, long)
        return long

    def _left(self, now: float) -> float:
        """Share that is left of what was counted."""
        return math.exp(-max(0.0, now - self._now) / MEMORY)

    def _fade(self, now: float) -> None:
        left = self._left(now)
        self._now = max(self._now, now)
        self._prompt_tokens *= left
        self._requests *= left
