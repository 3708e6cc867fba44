"""The waiting line: its order and its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.core.queue import QueueLimits, WaitingQueue
from giusto.core.request import Reason, Request
from giusto.core.slo import BestEffort, Deadline
from strategies import LiteralView, request


def line(*requests: Request) -> WaitingQueue:
    queue = WaitingQueue()
    for serial, each in enumerate(requests):
        each.serial = serial
        queue.push(each)
    return queue


def test_the_line_is_in_order_of_arrival() -> None:
    """Who comes back from preemption stands where it arrived; ties keep their order of entry."""
    a, b, c, d = (request(name, arrival=t) for name, t in zip("abcd", (2, 1, 2, 0), strict=True))
    assert [r.id for r in line(a, b, c, d).requests] == ["d", "b", "a", "c"]


def test_removing_takes_the_right_one() -> None:
    """Among equal arrivals the very request goes, and its tokens with it."""
    a, b, c = (request(name, 10) for name in "abc")
    queue = line(a, b, c)
    queue.remove(b)
    assert ([r.id for r in queue.requests], queue.num_prefill_tokens) == (["a", "c"], 20)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["promise", 5.0, 60.0]), st.booleans())),
    st.randoms(use_true_random=False),
)
def test_the_longest_waits_for_a_first_token_are_at_hand(waits, rng) -> None:
    """One of each span of best effort and one of the promised, as going through the line finds."""
    requests = []
    for index, (arrival, span, has_token) in enumerate(waits):
        slo = Deadline(9.0) if span == "promise" else BestEffort(span)
        requests.append(request(f"r{index}", slo=slo, arrival=arrival))
        requests[-1].first_token = 1.0 if has_token else None
    queue = line(*requests)
    rng.shuffle(requests)
    while True:
        found = sorted(r.id for r in queue.unanswered)
        assert found == sorted(r.id for r in LiteralView(waiting=queue.requests).unanswered)
        if not requests:
            break
        queue.remove(requests.pop())


def test_removing_who_does_not_wait_is_a_bug() -> None:
    """The line notices instead of removing another."""
    a, b = request("a"), request("b")
    queue = line(a, b)
    queue.remove(a)
    with pytest.raises(AssertionError, match="a is not where it should wait"):
        queue.remove(a)


def test_an_unbounded_line_refuses_nobody() -> None:
    """Without limits anything may wait."""
    assert line(request("a", 100)).refuse(1000, 10**9, QueueLimits()) is None


def test_requests_are_bounded() -> None:
    """Newcomers that would exceed the number are refused, all samples together."""
    queue, limits = line(request("a"), request("b")), QueueLimits(max_num_queued_reqs=4)
    assert queue.refuse(2, 1, limits) is None
    assert queue.refuse(3, 1, limits) is Reason.QUEUE_FULL


def test_tokens_are_bounded() -> None:
    """Newcomers that would exceed the tokens are refused, unless nobody waits."""
    limits = QueueLimits(max_num_queued_tokens=30)
    queue = line(request("a", 20))
    assert queue.refuse(1, 10, limits) is None
    assert queue.refuse(1, 11, limits) is Reason.QUEUE_TOKENS_FULL
    assert line().refuse(1, 1000, limits) is None


def test_the_preempted_do_not_count() -> None:
    """Who was accepted once takes no newcomer's place, but its work shows in the backlog."""
    back = request("a", 20)
    back.num_preemptions = 1
    queue = line(back)
    limits = QueueLimits(max_num_queued_reqs=1, max_num_queued_tokens=5)
    assert queue.refuse(1, 100, limits) is None
    assert (len(queue), queue.num_prefill_tokens) == (1, 20)
    queue.push(request("b", 5))
    assert queue.refuse(1, 1, limits) is Reason.QUEUE_FULL
    queue.remove(back)
    assert queue.num_prefill_tokens == 5
