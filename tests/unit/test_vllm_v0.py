"""Prompts or decodes, never both: `vllm-v0`, and `fcfs` with its options."""

from __future__ import annotations

import pytest

from giusto.core.plan import Limits, Pin, Plan, check
from giusto.policies import make
from giusto.policies.base import Dependencies
from giusto.predict.base import Constant
from harness import LATENCY, Drive, policy_named
from strategies import Hit, LiteralView, decoding, mixed_load, request

DEPS = Dependencies(LATENCY, Constant(32))


def planned(view: LiteralView, name: str = "vllm-v0", **options: object) -> list[tuple[str, int]]:
    """What is granted to whom, of a plan that keeps the contract."""
    plan: Plan = make(name, DEPS, options).plan(view)
    check(plan, view)
    return [(grant.request_id, grant.num_tokens) for grant in plan.grants]


def test_a_prompt_that_fits_keeps_decodes_waiting() -> None:
    """A step with a prompt has no decode, whoever came first."""
    view = LiteralView([decoding("a"), decoding("b")], [request("c", 20), request("d", 30)])
    assert planned(view) == [("c", 20), ("d", 30)]


def test_without_prompts_all_residents_decode() -> None:
    """In order of residence."""
    assert planned(LiteralView([decoding("b"), decoding("a")])) == [("b", 1), ("a", 1)]


def test_prompts_stay_whole() -> None:
    """What the step's tokens do not hold waits for the next; nobody behind it passes."""
    view = LiteralView([decoding("a")], [request("c", 60), request("d", 8), request("e", 1)])
    assert planned(view) == [("c", 60)]


@pytest.mark.parametrize(
    ("free_blocks", "slots"), [(4, 8), (100, 2)], ids=["no blocks", "no slots"]
)
def test_decodes_go_on_while_the_first_prompt_does_not_fit(free_blocks: int, slots: int) -> None:
    """The first in line decides, even when a later one would fit."""
    view = LiteralView([decoding("a"), decoding("b")], [request("c", 20), request("d", 4)])
    view.free_blocks, view.limits = free_blocks, Limits(64, slots, 4)
    assert planned(view) == [("a", 1), ("b", 1)]


def test_cached_prefixes_count_as_computed() -> None:
    """A prompt that fits thanks to its prefix is taken, with what is left of it."""
    view = LiteralView([decoding("a")], [request("c", 20)], free_blocks=2)
    view.hits = {"c": Hit(3)}
    assert planned(view) == [("c", 8)]


def test_a_prompt_above_the_budget_is_cut_and_goes_on_alone() -> None:
    """It takes full steps until it is done; decodes wait as they do for any prompt."""
    long = request("c", 150)
    assert planned(LiteralView([decoding("a")], [long])) == [("c", 64)]
    long.num_computed_tokens, long.resident_since = 64, 1.0
    assert planned(LiteralView([decoding("a"), long], [request("d", 8)])) == [("c", 64)]
    long.num_computed_tokens = 128
    view = LiteralView([decoding("a"), long], [request("d", 8)])
    assert planned(view) == [("c", 22), ("d", 8)]


def test_an_overdue_pin_decodes_beside_prompts() -> None:
    """The oldest resident is not passed over for ever."""
    view = LiteralView([decoding("a"), decoding("b")], [request("c", 20)], pin=Pin("a", True))
    assert planned(view) == [("a", 1), ("c", 20)]


def test_it_is_fcfs_with_two_options() -> None:
    """`fcfs` with whole prompts first makes the same plans, to the end of a load."""
    load = mixed_load(30, seed=21)
    options = {"chunked_prefill": False, "prefill_first": True}
    runs = []
    for name, chosen in (("vllm-v0", {}), ("fcfs", options), ("fcfs", {})):
        policy, lengths = policy_named(name, **chosen)
        run = Drive.of(policy, load.lengths, num_blocks=40, observers=[lengths.observe])
        run.run(load.asks)
        runs.append(run.plans)
    assert runs[0] == runs[1] != runs[2]


def test_prompts_first_may_be_cut_too() -> None:
    """With chunked prefill a step is filled with prompts up to its last token."""
    view = LiteralView([decoding("a")], [request("c", 60), request("d", 8)])
    assert planned(view, "fcfs", prefill_first=True) == [("c", 60), ("d", 4)]
    assert planned(view, "fcfs") == [("a", 1), ("c", 60), ("d", 3)]
