"""Shortest prompt first: a policy in a file, simulated beside two others.

    python examples/simulate_a_policy.py
    giusto simulate --workload slo-mix --request-rate 0.2 --policy edf,examples/simulate_a_policy.py

Needs no engine: `pip install -e .` is enough. `giusto serve` takes it too.
"""

from dataclasses import dataclass

from giusto.core.pack import pack
from giusto.core.plan import Plan, View, Want
from giusto.policies.base import Dependencies, Stateless, with_floor


@dataclass(frozen=True)
class Parameters:
    """Nothing to set."""


class ShortestPromptFirst(Stateless):
    """Whoever runs goes on; of those that wait the shortest prompt comes next."""

    def plan(self, view: View) -> Plan:
        waiting = sorted(view.waiting, key=lambda request: request.num_prompt_tokens)
        wants = (Want(request.id) for request in (*view.running, *waiting))
        return pack(with_floor(wants, view), view)


def make(parameters: Parameters, deps: Dependencies) -> ShortestPromptFirst:
    return ShortestPromptFirst()


if __name__ == "__main__":
    from giusto.cli import app

    flags = ["--workload", "slo-mix", "--request-rate", "0.2", "--policy", f"fcfs,{__file__}"]
    app(["simulate", *flags])
