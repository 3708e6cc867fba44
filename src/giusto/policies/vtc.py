"""Fair shares among tenants: whoever was served least, in tokens by weight, is admitted next.

Each tenant has a counter of what was computed for it: an output token counts as two of a prompt,
one from the prefix cache as a tenth. A tenant that joins the line is lifted to the least counter
in it, or to that of the tenant that left it last: being idle earns no credit.

Source: Sheng et al., "Fairness in serving large language models" (VTC, arXiv 2401.00588),
algorithm 2. Differs: prompts are charged by the chunk, cached tokens at a price of their own,
recomputed ones not at all; whoever is preempted joins the line, lift included; residents are
served in order of counters too, so that the most served tenant is the first to lose its blocks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from itertools import chain, islice

from giusto.core.events import Admitted, Arrived, Finished, Preempted, Rejected, Resumed, Stepped
from giusto.core.pack import Budget, pack
from giusto.core.plan import Plan, StepOutcome, View, Want
from giusto.core.request import RequestView
from giusto.policies.base import Dependencies

#: A request may state that it is worth nothing; it has a share all the same.
LEAST_WEIGHT = 1e-3
#: Tenants beyond which those are looked for that can be forgotten.
REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Parameters:
    """w_in, w_out, w_hit: price of a prompt token, an output token, a token of a cached prefix.

    lift: whether a tenant that comes back starts level with those in line; without it this is
    least-counter-first. weights: shares as "gold=4,silver=2", by tenant; other
    tenants have the weight that each of their requests states.
    """

    w_in: float = 1.0
    w_out: float = 2.0
    w_hit: float = 0.1
    lift: bool = True
    weights: str = ""

    def __post_init__(self) -> None:
        for name in ("w_in", "w_out", "w_hit"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        parse_weights(self.weights)


def parse_weights(text: str) -> dict[str, float]:
    """Read "gold=4,silver=2", or with semicolons; ValueError unless weights are above 0."""
    weights = {}
    for part in filter(None, text.replace(";", ",").split(",")):
        name, _, number = part.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not name.strip() or not 0 < weight < math.inf:
            raise ValueError(f"weights must look like gold=4,silver=2, got {part!r}")
        weights[name.strip()] = weight
    return weights


@dataclass(slots=True)
class _Bill:
    """What a request was charged for: so many tokens of its prompt; `price` is 1 / weight."""

    request: RequestView
    price: float
    paid: int = 0
    is_queued: bool = False

    @property
    def num_granted(self) -> int:
        return self.request.num_computed_tokens + self.request.num_in_flight_tokens

    def unpaid(self, num_tokens: int) -> int:
        """Prompt tokens among the first `num_tokens` that were never charged."""
        return max(0, min(num_tokens, self.request.num_prompt_tokens) - self.paid)

    def pay(self, num_tokens: int) -> int:
        """Count them as charged."""
        unpaid = self.unpaid(num_tokens)
        self.paid += unpaid
        return unpaid


class Vtc:
    """See the module."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        self._weights = parse_weights(parameters.weights)
        self._served: dict[str, float] = {}
        self._bills: dict[str, _Bill] = {}
        self._num_queued: dict[str, int] = {}
        self._last_left = ""
        self._forget_at = REMEMBERED

    def served(self, tenant: str) -> float:
        """A tenant's counter: tokens at their price over its weight, lifts included."""
        return self._served.get(tenant, 0.0)

    # Learning

    def observe(self, event: object) -> None:
        match event:
            case Arrived(request):
                weight = self._weights.get(request.tenant, request.weight)
                bill = self._bills[request.id] = _Bill(request, 1 / max(weight, LEAST_WEIGHT))
                self._join(bill)
            case Admitted(request_id, _, num_cached) | Resumed(request_id, _, num_cached):
                bill = self._bills[request_id]
                self._charge(bill, self.parameters.w_hit * bill.pay(num_cached))
                self._leave(bill)
            case Preempted(request_id):
                self._join(self._bills[request_id])
            case Stepped(outcome):
                self._book(outcome)
            case Finished(request_id) | Rejected(request_id):
                bill = self._bills.pop(request_id)
                # A cancel may find a chunk in flight.
                self._charge(bill, self.parameters.w_in * bill.pay(bill.num_granted))
                self._leave(bill)

    def _book(self, outcome: StepOutcome) -> None:
        """Charge the output of a step, and the prompt chunks that were granted until now."""
        for request_id, made in outcome.yields.items():
            bill = self._bills.get(request_id)
            if bill is None:
                continue
            cost = self.parameters.w_out * len(made.tokens)
            if bill.paid < bill.request.num_prompt_tokens:
                cost += self.parameters.w_in * bill.pay(bill.num_granted)
            self._charge(bill, cost)

    def _charge(self, bill: _Bill, cost: float) -> None:
        tenant = bill.request.tenant
        self._served[tenant] = self._served.get(tenant, 0.0) + cost * bill.price

    def _join(self, bill: _Bill) -> None:
        """Put a request in line; its tenant is lifted unless it had one there already."""
        tenant = bill.request.tenant
        self._served.setdefault(tenant, 0.0)
        if self.parameters.lift and tenant not in self._num_queued:
            level = min(map(self.served, self._num_queued or (self._last_left,)))
            self._served[tenant] = max(self.served(tenant), level)
        self._num_queued[tenant] = self._num_queued.get(tenant, 0) + 1
        bill.is_queued = True
        if len(self._served) > self._forget_at:
            self._forget()

    def _forget(self) -> None:
        """Drop tenants without requests whom a lift would put where they are."""
        if not self.parameters.lift:
            return
        level = min(map(self.served, self._num_queued))
        known = {bill.request.tenant for bill in self._bills.values()} | {self._last_left}
        self._served = {t: c for t, c in self._served.items() if t in known or c > level}
        self._forget_at = max(REMEMBERED, 2 * len(self._served))

    def _leave(self, bill: _Bill) -> None:
        if not bill.is_queued:
            return
        bill.is_queued = False
        tenant = bill.request.tenant
        self._num_queued[tenant] -= 1
        if not self._num_queued[tenant]:
            del self._num_queued[tenant]
            self._last_left = tenant

    # Deciding

    def plan(self, view: View) -> Plan:
        served = self._served.copy()
        num_decodes = 0
        for request in view.running:
            num_decodes += request.num_remaining_tokens == 1
            if request.num_in_flight_tokens and (bill := self._bills.get(request.id)):
                # With lookahead, no event has told of this chunk yet.
                unpaid = self.parameters.w_in * bill.unpaid(bill.num_granted)
                served[request.tenant] += unpaid * bill.price
        residents = sorted(view.running, key=lambda request: served[request.tenant])
        line = islice(self._line(view, served), view.free_slots)
        wants = (Want(request.id) for request in chain(residents, line))
        # The prompts of one tenant must not stall the streams of another.
        prefill = max(0, view.limits.max_num_batched_tokens - num_decodes)
        return pack(wants, view, budget=Budget(max_prefill_tokens=prefill))

    def _line(self, view: View, served: dict[str, float]) -> Iterator[RequestView]:
        """Waiting requests, the least served tenant's first, as if each were charged at once.

        First come, first served within a tenant; of equal tenants the earlier arrival.
        """
        lines: dict[str, deque[RequestView]] = {}
        for request in view.waiting:
            lines.setdefault(request.tenant, deque()).append(request)
        heads = [(served[tenant], line[0].arrival, tenant) for tenant, line in lines.items()]
        heapify(heads)
        while heads:
            counter, _, tenant = heads[0]
            line = lines[tenant]
            request = line.popleft()
            yield request
            if line:
                counter += self._entry_cost(request, view)
                heapreplace(heads, (counter, line[0].arrival, tenant))
            else:
                heappop(heads)

    def _entry_cost(self, request: RequestView, view: View) -> float:
        """What the prompt of a waiting request will add to its tenant's counter."""
        bill = self._bills[request.id]
        num_hits = bill.unpaid(view.cost(request.id, 1).cached_tokens)
        num_others = bill.unpaid(request.num_prompt_tokens) - num_hits
        cost = self.parameters.w_hit * num_hits + self.parameters.w_in * num_others
        return cost * bill.price


def make(parameters: Parameters, deps: Dependencies) -> Vtc:
    return Vtc(parameters)
