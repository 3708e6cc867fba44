"""First come, first served: residents in order of residence, then the queue in order of arrival.

What vLLM does by default: running requests first, chunked prefill, the youngest resident loses
its blocks when memory runs out. `chunked_prefill=false` keeps prompts whole.

Source: vLLM V1 scheduler, policy `fcfs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from giusto.core.pack import Budget, pack
from giusto.core.plan import Plan, View, Want
from giusto.policies.base import Dependencies, Stateless


@dataclass(frozen=True, slots=True)
class Parameters:
    """chunked_prefill: whether a prompt may be spread over several steps."""

    chunked_prefill: bool = True


class Fcfs(Stateless):
    """See the module."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def plan(self, view: View) -> Plan:
        wants = (Want(request.id) for request in chain(view.running, view.waiting))
        return pack(wants, view, budget=Budget(chunk=self.parameters.chunked_prefill))


def make(parameters: Parameters, deps: Dependencies) -> Fcfs:
    return Fcfs(parameters)
