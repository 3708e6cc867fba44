"""Who takes more than its share: tenants by the tokens that were lately computed for them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

from giusto.core.events import Arrived, Finished, Rejected, Stepped
from giusto.core.request import RequestView

#: Seconds in which what was served counts for a third.
MEMORY = 10.0


class Shares:
    """Tokens by tenant, fading with time; a tenant counts by its requests' mean weight.

    Only those with open requests share: who is alone takes all, and being idle earns no credit.
    """

    def __init__(self) -> None:
        self._open: dict[str, RequestView] = {}
        self._num_open: Counter[str] = Counter()
        self._weights: defaultdict[str, float] = defaultdict(float)
        self._served: defaultdict[str, float] = defaultdict(float)
        self._now = 0.0

    def favours(self) -> dict[str, float]:
        """By tenant: 1 within its share, less by as much as it has had more; empty below two."""
        if len(self._num_open) < 2:
            return {}
        weights = {name: self._weights[name] / count for name, count in self._num_open.items()}
        served = {name: self._served.get(name, 0.0) for name in weights}
        whole, everything = sum(weights.values()), sum(served.values())
        return {
            name: min(1.0, weights[name] / whole * everything / tokens) if whole and tokens else 1.0
            for name, tokens in served.items()
        }

    def observe(self, event: object) -> None:
        match event:
            case Arrived(request):
                self._open[request.id] = request
                self._num_open[request.tenant] += 1
                self._weights[request.tenant] += request.weight
            case Stepped(outcome) if len(self._num_open) > 1:
                self._fade(outcome.ended)
                for request_id, made in outcome.yields.items():
                    known = self._open.get(request_id)
                    if known is not None and made.tokens:
                        is_first = known.first_token is None
                        prompt = known.num_prompt_tokens if is_first else 0
                        self._served[known.tenant] += prompt + len(made.tokens)
            case Finished(request_id) | Rejected(request_id):
                self._leave(self._open.pop(request_id, None))

    def _leave(self, request: RequestView | None) -> None:
        if request is None:
            return
        tenant = request.tenant
        self._num_open[tenant] -= 1
        self._weights[tenant] -= request.weight
        if not self._num_open[tenant]:
            del self._num_open[tenant], self._weights[tenant]

    def _fade(self, now: float) -> None:
        left = math.exp(-max(0.0, now - self._now) / MEMORY)
        self._now = max(self._now, now)
        faded = {tenant: tokens * left for tenant, tokens in self._served.items()}
        kept = {tenant: tokens for tenant, tokens in faded.items() if tokens >= 1}
        self._served = defaultdict(float, kept)
