"""The pin: who it is, and when it is overdue."""

from __future__ import annotations

from giusto.core.pin import PATIENCE_S, PATIENCE_STEPS, PinWatch
from giusto.core.plan import Grant, Pin, Plan
from strategies import decoding, request


def serving(*names: str) -> Plan:
    return Plan(0, tuple(Grant(name, 1) for name in names))


def test_nobody_is_pinned_on_an_empty_machine() -> None:
    """Without residents there is no pin."""
    assert PinWatch().look([], 0.0) is None


def test_the_oldest_resident_is_the_pin() -> None:
    """Residents come in order of residence; the first one counts."""
    assert PinWatch().look([decoding("a"), decoding("b")], 0.0) == Pin("a", is_overdue=False)


def test_it_is_overdue_after_steps_that_served_others_only() -> None:
    """Eight steps are patience enough, and being served starts the count again."""
    watch, running = PinWatch(), [decoding("a"), decoding("b")]
    for _ in range(PATIENCE_STEPS):
        assert watch.look(running, 0.0) == Pin("a", is_overdue=False)
        watch.count(serving("b"), 0.0)
    assert watch.look(running, 0.0) == Pin("a", is_overdue=True)
    watch.count(serving("b", "a"), 0.0)
    assert watch.look(running, 0.0) == Pin("a", is_overdue=False)


def test_it_is_overdue_after_a_second() -> None:
    """Long steps count by time."""
    watch, running = PinWatch(), [decoding("a"), decoding("b")]
    watch.look(running, 5.0)
    watch.count(serving("b"), 5.0)
    assert watch.look(running, 5.0 + PATIENCE_S) == Pin("a", is_overdue=True)


def test_steps_that_serve_nobody_do_not_count() -> None:
    """A pause passes over no one."""
    watch, running = PinWatch(), [decoding("a")]
    for _ in range(PATIENCE_STEPS + 1):
        watch.look(running, 0.0)
        watch.count(serving(), 0.0)
    assert watch.look(running, 0.0) == Pin("a", is_overdue=False)


def test_patience_begins_anew_with_another_pin() -> None:
    """A resident that becomes the oldest inherits no count."""
    watch, old, young = PinWatch(), decoding("a"), decoding("b")
    for _ in range(PATIENCE_STEPS):
        watch.look([old, young], 0.0)
        watch.count(serving("b"), 0.0)
    assert watch.look([young], 0.0) == Pin("b", is_overdue=False)


def test_a_pin_with_nothing_to_do_is_not_overdue() -> None:
    """While its last token is in flight no one can serve it."""
    busy = request("a", 8, computed=8, output=1, max_tokens=2)
    busy.launch(1)
    watch = PinWatch()
    watch.look([busy], 0.0)
    assert watch.look([busy], 10.0) == Pin("a", is_overdue=False)
