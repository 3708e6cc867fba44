"""Events happen in one total order, and never in the past."""

from __future__ import annotations

import random

from giusto.sim.kernel import Kernel, Order


def test_events_happen_by_time_then_order_then_number() -> None:
    """At one instant what ends goes before what arrives, and that before what is decided."""
    kernel = Kernel()
    seen: list[str] = []
    wanted = [
        (1.0, Order.PLAN, "plan"),
        (1.0, Order.ARRIVAL, "first arrival"),
        (2.0, Order.END, "later"),
        (1.0, Order.ARRIVAL, "second arrival"),
        (1.0, Order.END, "end"),
        (0.5, Order.PLAN, "earlier"),
    ]
    for time, order, name in wanted:
        kernel.at(time, order, lambda name=name: seen.append(name))
    kernel.run()
    assert seen == ["earlier", "end", "first arrival", "second arrival", "plan", "later"]
    assert kernel.now == 2.0


def test_what_is_past_happens_now() -> None:
    """An event that is asked for too late happens at once; the clock never goes back."""
    kernel = Kernel()
    times: list[float] = []

    def late() -> None:
        kernel.at(1.0, Order.END, lambda: times.append(kernel.now))

    kernel.at(5.0, Order.PLAN, late)
    kernel.at(6.0, Order.END, lambda: times.append(kernel.now))
    kernel.run()
    assert times == [5.0, 6.0]


def test_run_stops_before_what_lies_beyond() -> None:
    """`until` is inclusive; the rest happens when time goes on."""
    kernel = Kernel()
    seen: list[float] = []
    for time in (1.0, 2.0, 3.0):
        kernel.at(time, Order.END, lambda: seen.append(kernel.now))
    kernel.run(until=2.0)
    assert seen == [1.0, 2.0]
    assert kernel.now == 2.0
    kernel.run()
    assert seen == [1.0, 2.0, 3.0]


def test_the_same_calls_give_the_same_order() -> None:
    """A run of many clashing events repeats itself exactly."""

    def order(seed: int) -> list[int]:
        rng = random.Random(seed)
        kernel = Kernel()
        seen: list[int] = []
        for number in range(200):
            what = rng.choice(list(Order))
            kernel.at(float(rng.randint(0, 5)), what, lambda number=number: seen.append(number))
        kernel.run()
        return seen

    assert order(1) == order(1)
    assert order(1) != order(2)
