"""First come, first served: residents in order of residence, then the queue in order of arrival.

What vLLM does by default: running requests first, chunked prefill, the youngest resident loses
its blocks when memory runs out. `chunked_prefill=false` keeps prompts whole; with
`prefill_first=true` no step mixes prompts and decodes, and prompts come first.

Source: vLLM V1 scheduler, policy `fcfs`; V0 with both options (`vllm-v0`).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from giusto.core.pack import Budget, pack
from giusto.core.plan import Plan, View, Want
from giusto.policies.base import Dependencies, Stateless, prompts_first


@dataclass(frozen=True, slots=True)
class Parameters:
    """chunked_prefill: whether a prompt may be spread over several steps; prefill_first: whether
    steps are of prompts alone while one fits, else of decodes alone."""

    chunked_prefill: bool = True
    prefill_first: bool = False


class Fcfs(Stateless):
    """See the module."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def plan(self, view: View) -> Plan:
        if self.parameters.prefill_first:
            order = prompts_first(view)
        else:
            order = chain(view.running, view.waiting)
        wants = (Want(request.id) for request in order)
        return pack(wants, view, budget=Budget(chunk=self.parameters.chunked_prefill))


def make(parameters: Parameters, deps: Dependencies) -> Fcfs:
    return Fcfs(parameters)
