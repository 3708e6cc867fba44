"""No policy sees how long an output will be, a text, a clock or a tensor."""

from __future__ import annotations

import ast
import inspect
import random
from pathlib import Path
from typing import Any

import pytest

import giusto.policies
import giusto.predict
from giusto.core.events import Arrived, Finished
from giusto.core.plan import Plan, ProgramView, View
from giusto.core.request import RequestView
from giusto.policies import REGISTRY
from harness import HONEST, Drive, policy_named
from strategies import mixed_load

#: Run in a process of their own, off the scheduler's thread.
APART = ("forest.py", "forest_worker.py")
SOURCES = [
    path
    for package in (giusto.policies, giusto.predict)
    for path in sorted(Path(package.__file__).parent.rglob("*.py"))
    if path.name not in APART
]
HIDDEN = {
    "sampling",
    "token_ids",
    "output_ids",
    "prompt_ids",
    "max_tokens_left",
    "max_total_tokens",
    "block_keys",
    "text",
    "length",
    "true_length",
    "lengths",
}
BANNED_MODULES = {"time", "datetime", "random", "torch", "numpy", "giusto.core.clock"}


def public(protocol: type) -> set[str]:
    """Names that a protocol exposes."""
    return {name for name in vars(protocol) if not name.startswith("_")}


@pytest.mark.parametrize("protocol", [RequestView, View, ProgramView])
def test_views_expose_no_oracle(protocol: type) -> None:
    """Walked member by member, views have no text, no true length and no `max_tokens`."""
    names = public(protocol)
    assert names
    assert not names & (HIDDEN | {"max_tokens"})
    for name in names:
        member = inspect.getattr_static(protocol, name)
        assert isinstance(member, property) or inspect.isfunction(member)
        assert not isinstance(member, property) or member.fset is None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_sources_reach_for_nothing_hidden(path: Path) -> None:
    """No policy or predictor reads what the view hides, or imports a clock or a dice."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not is_own(node):
            assert node.attr not in HIDDEN, f"line {node.lineno} reads .{node.attr}"
        if isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & BANNED_MODULES
        if isinstance(node, ast.ImportFrom):
            assert node.module not in BANNED_MODULES


def is_own(node: ast.Attribute) -> bool:
    """`self.lengths` and `deps.lengths` are the predictor, not the truth."""
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "deps")


class Guarded:
    """Shows of an object only what its protocol has."""

    def __init__(self, inner: object, names: set[str]) -> None:
        self._inner, self._names = inner, names

    def __getattr__(self, name: str) -> Any:
        assert name in self._names, f"a policy read {name!r}, which no view promises"
        return getattr(self._inner, name)


class GuardedView(Guarded):
    """A view whose requests and programs are guarded too."""

    @property
    def waiting(self) -> list[Guarded]:
        return [guard(r) for r in self._inner.waiting]

    @property
    def running(self) -> list[Guarded]:
        return [guard(r) for r in self._inner.running]

    def request(self, request_id: str) -> Guarded:
        return guard(self._inner.request(request_id))

    def program(self, program_id: str) -> Guarded | None:
        program = self._inner.program(program_id)
        return None if program is None else Guarded(program, public(ProgramView))


def guard(request: RequestView) -> Guarded:
    return Guarded(request, public(RequestView))


class Blinkered:
    """A policy that is shown no more than the protocols promise."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def plan(self, view: View) -> Plan:
        return self.inner.plan(GuardedView(view, public(View)))

    def observe(self, event: object) -> None:
        if isinstance(event, Arrived):
            event = Arrived(guard(event.request), event.now)
        self.inner.observe(event)


@pytest.mark.parametrize("name", REGISTRY)
def test_policies_live_on_what_the_protocols_promise(name: str) -> None:
    """Behind a guard that shows nothing else, every policy and its predictor work to the end."""
    load = mixed_load(30, seed=11)
    policy, lengths = policy_named(name, truth=load.lengths)
    drive = Drive.of(
        Blinkered(policy), load.lengths, num_blocks=20, observers=[Blinkered(lengths).observe]
    )
    drive.run(load.asks)
    assert drive.emitted == drive.answered(load.lengths)


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("name", HONEST)
def test_hidden_lengths_do_not_show_before_the_first_end(name: str, lookahead: int) -> None:
    """With the lengths permuted, all plans up to the first finish are the same."""
    load = mixed_load(40, seed=13, rate=40.0, max_output=60)
    hidden = {name: 20 + length for name, length in load.lengths.items()}
    values = list(hidden.values())
    random.Random(13).shuffle(values)
    permuted = dict(zip(hidden, values, strict=True))
    assert permuted != hidden
    runs = [until_first_end(name, load.asks, truth, lookahead) for truth in (hidden, permuted)]
    same = min(map(len, runs))
    assert same > 10
    assert runs[0][:same] == runs[1][:same]


def until_first_end(name: str, asks: list, truth: dict[str, int], lookahead: int) -> list[Plan]:
    """The plans that were made before any request had ended."""
    before: list[Plan] = []

    def stop(drive: Drive) -> None:
        if not before and any(isinstance(event, Finished) for event in drive.events):
            before.extend(drive.plans)

    policy, lengths = policy_named(name)
    drive = Drive.of(
        policy,
        truth,
        num_blocks=40,
        lookahead=lookahead,
        observers=[lengths.observe],
        after_step=stop,
    )
    drive.run(asks)
    return before
