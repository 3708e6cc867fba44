"""vLLM's V0 engine: whole prompts before decodes, first come, first served, never both in a step.

While the first request in line fits, a step is made of whole prompts; otherwise all residents
decode. New streams start at once, running ones stall for it.

Source: vLLM 0.8.4, V0 scheduler with chunked prefill off, the "vLLM" that AdaServe compares with
(arXiv 2501.12162). Differs: no watermark of free blocks, a prompt above the step's budget is cut
rather than refused, and the oldest resident, passed over for eight steps, decodes beside prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

from giusto.core.pack import Budget, pack
from giusto.core.plan import Plan, View, Want
from giusto.policies.base import Dependencies, Stateless, prompts_first


@dataclass(frozen=True, slots=True)
class Parameters:
    """Nothing to set."""


class VllmV0(Stateless):
    """See the module."""

    # The order is in `base`, for `fcfs` has it as an option and no policy imports another.
    def plan(self, view: View) -> Plan:
        wants = (Want(request.id) for request in prompts_first(view))
        return pack(wants, view, budget=Budget(chunk=False))


def make(parameters: Parameters, deps: Dependencies) -> VllmV0:
    return VllmV0()
