"""Stall-free batching: decodes first, then running prefills, then new prompts, in small chunks.

The chunk bounds the tokens of a step, so that no prompt stalls the streams for long.

Source: Sarathi-Serve (arXiv 2403.02310), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from giusto.core.pack import Budget, pack
from giusto.core.plan import Plan, View, Want
from giusto.policies.base import Dependencies, Stateless


@dataclass(frozen=True, slots=True)
class Parameters:
    """chunk_tokens: tokens of one step, decodes included."""

    chunk_tokens: int = 256

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, got {self.chunk_tokens}")


class Sarathi(Stateless):
    """See the module."""

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters

    def plan(self, view: View) -> Plan:
        decodes = [request for request in view.running if request.num_remaining_tokens <= 1]
        prefills = [request for request in view.running if request.num_remaining_tokens > 1]
        wants = (Want(request.id) for request in chain(decodes, prefills, view.waiting))
        # Decodes are never cut: a step may exceed the chunk by them, as in the paper.
        tokens = max(self.parameters.chunk_tokens, len(decodes))
        return pack(wants, view, budget=Budget(max_tokens=tokens))


def make(parameters: Parameters, deps: Dependencies) -> Sarathi:
    return Sarathi(parameters)
