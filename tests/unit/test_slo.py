"""Every rule of SLOs, attainment and gain, by hand-computed cases and properties."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from giusto.core.slo import (
    CUT_OFF,
    SLO,
    BestEffort,
    Bounds,
    Deadline,
    Delivery,
    Program,
    Progress,
    Streaming,
    Value,
    bound,
    due,
    is_adaserve_attained,
    is_attained,
    is_missed,
    is_strictly_attained,
    kind,
    late_tokens,
    lateness_factor,
    possible_gain,
    program_gain,
    service_gain,
    slack,
    token_due,
)

seconds = st.floats(min_value=0.001, max_value=1e4, allow_nan=False)
instants = st.floats(min_value=0.0, max_value=1e6, allow_nan=False)
alphas = st.sampled_from([0.5, 1.0, 2.0, math.inf])
streams = st.builds(Streaming, ttft=seconds, tpot=seconds) | st.builds(Streaming, tpot=seconds)
slos: st.SearchStrategy[SLO] = st.one_of(
    streams,
    st.builds(Streaming, ttft=seconds),
    st.builds(Deadline, seconds),
    st.builds(Program, seconds),
    st.builds(BestEffort),
)


@st.composite
def deliveries(draw: st.DrawFn) -> Delivery:
    arrival = draw(instants)
    times = []
    now = arrival
    for gap in draw(st.lists(st.floats(min_value=0, max_value=100), max_size=30)):
        now += gap
        times.append(now)
    end = draw(st.sampled_from([None, now]))
    return Delivery(arrival, draw(st.integers(1, 1000)), tuple(times), end)


def delivery(*times: float, arrival: float = 0.0, prompt: int = 10, ended: bool = True) -> Delivery:
    end = (times[-1] if times else arrival) if ended else None
    return Delivery(arrival, prompt, times, end)


# Kinds and their targets


@pytest.mark.parametrize(
    ("slo", "name"),
    [
        (Streaming(ttft=1), "streaming"),
        (Streaming(tpot=1), "streaming"),
        (Deadline(1), "deadline"),
        (Program(1), "program"),
        (BestEffort(), "best_effort"),
    ],
)
def test_kinds_have_names(slo: SLO, name: str) -> None:
    """Each SLO names its kind."""
    assert kind(slo) == name


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_targets_are_positive_and_finite(bad: float) -> None:
    """No SLO accepts a target that is zero, negative, infinite or not a number."""
    for make in (
        lambda: Streaming(ttft=bad),
        lambda: Streaming(ttft=1.0, tpot=bad),
        lambda: Deadline(bad),
        lambda: Program(bad),
        lambda: BestEffort(bad),
    ):
        with pytest.raises(ValueError, match="must be a positive, finite number of seconds"):
            make()


def test_a_stream_promises_something() -> None:
    """A streaming SLO without ttft and tpot is an error."""
    with pytest.raises(ValueError, match="needs ttft, tpot or both"):
        Streaming()


# What was delivered


def test_times_count_from_arrival() -> None:
    """TTFT and E2E include the queue; TPOT leaves the first token out."""
    got = delivery(13.0, 14.0, 16.0, arrival=10.0)
    assert (got.ttft, got.tpot, got.e2e) == (3.0, 1.5, 6.0)


def test_nothing_delivered_takes_for_ever() -> None:
    """Without a token and an end, TTFT and E2E are infinite."""
    got = delivery(ended=False)
    assert (got.ttft, got.tpot, got.e2e) == (math.inf, 0.0, math.inf)


def test_cut_short_has_a_first_token_but_no_end() -> None:
    """An answer that broke off has its TTFT; its E2E is infinite."""
    got = delivery(1.0, 2.0, ended=False)
    assert (got.ttft, got.e2e) == (1.0, math.inf)


def test_an_empty_answer_ends_when_it_ends() -> None:
    """Where the model stops at once, the end stands in for the first token."""
    got = Delivery(5.0, 10, (), end=7.0)
    assert (got.ttft, got.tpot, got.e2e) == (2.0, 0.0, 2.0)
    assert is_attained(Streaming(ttft=2.0), got)
    assert not is_attained(Streaming(ttft=1.9), got)


# Due times


def test_tokens_are_due_from_arrival() -> None:
    """Token k is due at a + T + k * P, however early the first one came."""
    slo = Streaming(ttft=2.0, tpot=0.5)
    assert [token_due(slo, k, 10.0, 10.1) for k in range(3)] == [12.0, 12.5, 13.0]


def test_without_ttft_tokens_are_due_from_the_first() -> None:
    """Without T the first token is never late and token k is due at e0 + k * P."""
    slo = Streaming(tpot=0.5)
    assert token_due(slo, 0, 10.0, None) == math.inf
    assert token_due(slo, 3, 10.0, None) == math.inf
    assert [token_due(slo, k, 10.0, 40.0) for k in (0, 1, 2)] == [math.inf, 40.5, 41.0]


def test_without_tpot_only_the_first_token_is_due() -> None:
    """Without P no later token has a due time."""
    assert token_due(Streaming(ttft=2.0), 0, 10.0, None) == 12.0
    assert token_due(Streaming(ttft=2.0), 1, 10.0, 11.0) == math.inf


@pytest.mark.parametrize(
    ("slo", "expected"),
    [
        (Streaming(ttft=2.0, tpot=0.5), 12.0 + 4 * 0.5),
        (Streaming(tpot=0.5), 11.0 + 4 * 0.5),
        (Deadline(30.0), 40.0),
        (Program(30.0), 40.0),
        (BestEffort(), math.inf),
    ],
)
def test_due_is_the_next_useful_unit(slo: SLO, expected: float) -> None:
    """A stream owes its next token, the other kinds their last one, best effort nothing."""
    assert due(slo, Progress(origin=10.0, first_token=11.0, num_output_tokens=4)) == expected


# Missed is a state of its own


def test_a_first_token_that_is_overdue_is_missed() -> None:
    """A stream is missed once T has passed without a token, or when its first came after it."""
    slo = Streaming(ttft=1.0, tpot=0.1)
    waiting = Progress(origin=0.0)
    assert not is_missed(slo, waiting, now=1.0)
    assert is_missed(slo, waiting, now=1.001)
    assert is_missed(
        slo, Progress(0.0, first_token=1.001, num_output_tokens=1, late_tokens=1), now=1.001
    )
    assert not is_missed(slo, Progress(0.0, first_token=0.9, num_output_tokens=1), now=50.0)


def test_a_stream_may_be_late_with_one_token_in_a_hundred_of_its_cap() -> None:
    """It is missed when more tokens were late than its longest answer allows."""
    slo = Streaming(tpot=0.1)
    assert not is_missed(
        slo, Progress(0.0, 1.0, num_output_tokens=50, late_tokens=2, cap=299), now=9.0
    )
    assert is_missed(slo, Progress(0.0, 1.0, num_output_tokens=50, late_tokens=3, cap=299), now=9.0)
    assert is_missed(slo, Progress(0.0, 1.0, num_output_tokens=2, late_tokens=1, cap=99), now=9.0)


@pytest.mark.parametrize("slo", [Deadline(5.0), Program(5.0)])
def test_a_passed_deadline_is_missed_and_never_urgent(slo: SLO) -> None:
    """Slack is None, not zero or negative, once a deadline has passed."""
    progress = Progress(origin=10.0)
    assert slack(slo, progress, now=15.0) == 0.0
    assert not is_missed(slo, progress, now=15.0)
    assert is_missed(slo, progress, now=15.001)
    assert slack(slo, progress, now=15.001) is None


def test_slack_is_what_is_left_after_the_work() -> None:
    """Slack subtracts now and work; it is infinite for best effort, negative when too late."""
    progress = Progress(origin=10.0)
    assert slack(Deadline(5.0), progress, now=11.0, work=1.5) == 2.5
    assert slack(Deadline(5.0), progress, now=14.0, work=1.5) == -0.5
    assert slack(BestEffort(), progress, now=1e9) == math.inf
    assert not is_missed(BestEffort(), progress, now=1e9)


@given(slos, instants, instants)
def test_slack_is_none_exactly_when_missed(slo: SLO, origin: float, now: float) -> None:
    """No order by slack can see a missed promise."""
    progress = Progress(origin)
    assert (slack(slo, progress, now) is None) == is_missed(slo, progress, now)


# Attainment


def test_a_stream_may_be_late_with_one_token_in_a_hundred() -> None:
    """At most floor(n / 100) of n tokens may be late."""
    slo = Streaming(ttft=1.0, tpot=1.0)

    def attained(n: int, late: Sequence[int]) -> bool:
        times = [k + (1.5 if k in late else 0.9) for k in range(n)]
        got = delivery(*times)
        assert late_tokens(slo, got) == len(late)
        return is_attained(slo, got)

    assert attained(99, [])
    assert not attained(99, [50])
    assert attained(100, [50])
    assert not attained(100, [50, 51])
    assert attained(200, [50, 51])


def test_the_first_token_has_no_tolerance() -> None:
    """TTFT > T is a miss, though one token in a hundred may be late."""
    times = [1.1, *(2.0 for _ in range(199))]
    assert late_tokens(Streaming(ttft=1.0, tpot=10.0), delivery(*times)) == 1
    assert not is_attained(Streaming(ttft=1.0, tpot=10.0), delivery(*times))


def test_an_early_token_may_be_followed_by_a_long_gap() -> None:
    """Due times do not move with what came early: the slack it earned may be spent."""
    assert is_attained(Streaming(ttft=2.0, tpot=1.0), delivery(0.1, 3.0))


def test_without_tpot_only_the_first_token_counts() -> None:
    """A stream with T alone is attained by its first token, and by ending."""
    assert is_attained(Streaming(ttft=1.0), delivery(1.0, 500.0))
    assert not is_attained(Streaming(ttft=1.0), delivery(1.0, 1.1, ended=False))


def test_a_deadline_is_met_by_the_last_token() -> None:
    """The last token by a + D; tokens without an end do not count."""
    assert is_attained(Deadline(5.0), delivery(11.0, 15.0, arrival=10.0))
    assert not is_attained(Deadline(5.0), delivery(11.0, 15.1, arrival=10.0))
    assert not is_attained(Deadline(5.0), delivery(11.0, arrival=10.0, ended=False))


def test_a_program_counts_from_its_opening() -> None:
    """A call is judged by the program's opening, not by its own arrival."""
    got = delivery(13.0, arrival=10.0)
    assert is_attained(Program(5.0), got, origin=8.0)
    assert not is_attained(Program(5.0), got, origin=7.9)
    assert is_attained(Program(5.0), got)


def test_best_effort_is_attained_by_ending() -> None:
    """Best effort has no due time, but it has to end."""
    assert is_attained(BestEffort(), delivery(1e6))
    assert not is_attained(BestEffort(), delivery(1.0, ended=False))


@given(slos, deliveries())
def test_a_delivery_at_the_due_instants_is_attained_in_full(slo: SLO, shape: Delivery) -> None:
    """Whatever comes exactly when it is due is in time, in every measure, despite rounding."""
    times: list[float] = []
    for k in range(len(shape.token_times) + 1):
        first = times[0] if times else None
        at = due(slo, Progress(shape.arrival, first, num_output_tokens=k))
        times.append(at if math.isfinite(at) else max([shape.arrival, *times]))
    got = Delivery(shape.arrival, 10, tuple(times), end=times[-1])
    assert late_tokens(slo, got) == 0
    assert is_attained(slo, got)
    gain = service_gain(slo, got, CUT_OFF)
    if isinstance(slo, Program):
        gain = program_gain(slo, shape.arrival, times[-1], [(10, len(times))], CUT_OFF)
    assert gain == pytest.approx(possible_gain(slo, 10, len(times), CUT_OFF))


@given(slos, deliveries())
def test_what_was_attained_was_never_missed(slo: SLO, got: Delivery) -> None:
    """`is_missed` never gives up on a promise that was kept."""
    if not is_attained(slo, got):
        return
    first = got.token_times[0] if got.token_times else None
    progress = Progress(
        got.arrival,
        first,
        len(got.token_times),
        late_tokens(slo, got),
        max(1, len(got.token_times)),
    )
    assert got.end is not None
    assert not is_missed(slo, progress, now=got.arrival if first is None else got.token_times[-1])


@given(slos, deliveries(), st.floats(min_value=0.001, max_value=100.0))
def test_coming_earlier_never_hurts(slo: SLO, got: Delivery, factor: float) -> None:
    """Attainment and gain cannot fall when every token of a promise from arrival comes sooner."""
    if isinstance(slo, Streaming) and slo.ttft is None:
        return  # due times move with the first token
    share = min(1.0, factor)
    times = tuple(min(t, got.arrival + (t - got.arrival) * share) for t in got.token_times)
    end = None if got.end is None else (times[-1] if times else got.arrival)
    sooner = Delivery(got.arrival, got.prompt_tokens, times, end)
    assert is_attained(slo, sooner) >= is_attained(slo, got)
    assert service_gain(slo, sooner) >= service_gain(slo, got) * (1 - 1e-9)


# The two other countings


def test_strict_attainment_is_by_mean_pace() -> None:
    """One late token is forgiven when the mean TPOT is kept; a slow mean is not."""
    slo = Streaming(ttft=1.0, tpot=1.0)
    uneven = delivery(0.5, 2.3, 2.5)
    assert not is_attained(slo, uneven)
    assert is_strictly_attained(slo, uneven)
    # Early, then slower than P: in time by the due instants, not by the mean.
    early = delivery(0.0, 1.9)
    assert is_attained(slo, early)
    assert not is_strictly_attained(slo, early)
    assert not is_strictly_attained(slo, delivery(1.1, 1.2))
    assert not is_strictly_attained(slo, delivery(0.5, ended=False))
    assert is_strictly_attained(Streaming(tpot=1.0), delivery(99.0, 100.0))
    assert is_strictly_attained(Streaming(ttft=1.0), delivery(1.0, 100.0))


def test_adaserve_counts_the_pace_alone() -> None:
    """A late first token does not matter to AdaServe's attainment, where a P was promised."""
    slo = Streaming(ttft=1.0, tpot=1.0)
    assert is_adaserve_attained(slo, delivery(50.0, 51.0))
    assert not is_adaserve_attained(slo, delivery(0.5, 1.6))
    assert not is_adaserve_attained(slo, delivery(0.5, ended=False))
    assert not is_adaserve_attained(Streaming(ttft=1.0), delivery(2.0))


@given(st.one_of(st.builds(Deadline, seconds), st.builds(BestEffort)), deliveries())
def test_other_kinds_are_counted_alike(slo: SLO, got: Delivery) -> None:
    """The three attainments differ for streams only."""
    expected = is_attained(slo, got)
    assert expected == is_strictly_attained(slo, got) == is_adaserve_attained(slo, got)
    assert late_tokens(slo, got) == 0


# Gain


def test_lateness_factor() -> None:
    """1 in time, (x / y) ** alpha when late, 0 under cut-off or for ever."""
    assert lateness_factor(2.0, 2.0, 1.0) == 1.0
    assert lateness_factor(2.0, 4.0, 1.0) == 0.5
    assert lateness_factor(2.0, 4.0, 2.0) == 0.25
    assert lateness_factor(2.0, 4.0, math.inf) == 0.0
    assert lateness_factor(2.0, math.inf, 1.0) == 0.0
    assert lateness_factor(math.inf, math.inf, 1.0) == 1.0


def test_stream_gain_by_hand() -> None:
    """w_p * L_in * late(T, TTFT) + w_d * sum of late(due_k - a, e_k - a)."""
    slo = Streaming(ttft=1.0, tpot=1.0)
    got = delivery(12.0, 12.0, 14.0, arrival=10.0)
    # TTFT 2 of 1 allowed; tokens at 2, 2, 4 are due at 1, 2, 3.
    assert service_gain(slo, got) == pytest.approx(10 * 0.5 + 2 * (0.5 + 1.0 + 0.75))
    assert service_gain(slo, got, CUT_OFF) == 2 * 1.0
    assert service_gain(slo, got, Value(w_prompt=3.0, w_decode=1.0), weight=2.0) == pytest.approx(
        2 * (3 * 10 * 0.5 + 0.5 + 1.0 + 0.75)
    )


def test_stream_gain_without_a_target() -> None:
    """A missing T makes the prompt's part whole; a missing P that of the later tokens."""
    assert service_gain(Streaming(tpot=1.0), delivery(50.0, 52.0)) == pytest.approx(
        10 + 2 * (1 + 51 / 52)
    )
    assert service_gain(Streaming(ttft=1.0), delivery(2.0, 99.0)) == 10 * 0.5 + 2 * (0.5 + 1)


def test_a_stream_earns_for_what_it_got() -> None:
    """Tokens of a stream that broke off have their value; a stream without tokens has none."""
    slo = Streaming(ttft=1.0, tpot=1.0)
    assert service_gain(slo, delivery(1.0, 2.0, ended=False)) == 10 + 2 * 2
    assert service_gain(slo, delivery(ended=False)) == 0.0


def test_deadline_gain_by_hand() -> None:
    """(w_p * L_in + w_d * L_out) * late(D, E2E); nothing without an end."""
    got = delivery(2.0, 8.0)
    assert service_gain(Deadline(8.0), got) == 14.0
    assert service_gain(Deadline(4.0), got) == 7.0
    assert service_gain(Deadline(4.0), got, Value(alpha=2.0), weight=2.0) == 7.0
    assert service_gain(Deadline(4.0), got, CUT_OFF) == 0.0
    assert service_gain(Deadline(8.0), delivery(2.0, ended=False)) == 0.0


def test_program_gain_by_hand() -> None:
    """The sum over its calls, times late(D, its end); its calls earn nothing alone."""
    calls = [(10, 5), (20, 10)]
    assert program_gain(Program(10.0), 100.0, 110.0, calls) == 60.0
    assert program_gain(Program(10.0), 100.0, 120.0, calls, weight=3.0) == 90.0
    assert program_gain(Program(10.0), 100.0, 120.0, calls, CUT_OFF) == 0.0
    assert program_gain(Program(10.0), 100.0, None, calls) == 0.0
    assert service_gain(Program(10.0), delivery(1.0)) == 0.0


def test_best_effort_earns_nothing() -> None:
    """Best effort has neither gain nor possible gain."""
    assert service_gain(BestEffort(), delivery(1.0)) == 0.0
    assert possible_gain(BestEffort(), 10, 10) == 0.0


def test_possible_gain_is_all_factors_one() -> None:
    """Possible gain is the weighted price of all tokens."""
    assert possible_gain(Deadline(1.0), 10, 5) == 20.0
    assert possible_gain(Program(1.0), 10, 2.5, weight=2.0) == 30.0


@given(slos, deliveries(), alphas, st.floats(min_value=0.1, max_value=10))
def test_gain_lies_between_nothing_and_the_possible(
    slo: SLO, got: Delivery, alpha: float, weight: float
) -> None:
    """0 <= gain <= possible, and the cut-off gain is never above the soft one."""
    value = Value(alpha=alpha)
    gain = service_gain(slo, got, value, weight)
    possible = possible_gain(slo, got.prompt_tokens, len(got.token_times), value, weight)
    assert 0.0 <= gain <= possible * (1 + 1e-9)
    assert service_gain(slo, got, CUT_OFF, weight) <= gain * (1 + 1e-9)


# Bounds of a key


def test_a_bound_raises_what_is_tighter() -> None:
    """Each target is raised to the operator's bound; looser ones and open ones stay."""
    bounds = Bounds(ttft=1.0, tpot=0.1, deadline=5.0)
    assert bound(Streaming(0.5, 0.2), bounds) == Streaming(1.0, 0.2)
    assert bound(Streaming(tpot=0.01), bounds) == Streaming(tpot=0.1)
    assert bound(Streaming(ttft=0.5), bounds) == Streaming(ttft=1.0)
    assert bound(Deadline(1.0), bounds) == Deadline(5.0)
    assert bound(Program(9.0), bounds) == Program(9.0)
    assert bound(BestEffort(), bounds) == BestEffort()


@given(slos)
def test_no_bounds_change_nothing(slo: SLO) -> None:
    """Without bounds an SLO stays as it was asked."""
    assert bound(slo, Bounds()) == slo


@given(instants, seconds, st.integers(2, 50))
def test_an_exact_pace_is_kept_despite_rounding(start: float, tpot: float, n: int) -> None:
    """Tokens exactly `tpot` apart keep it, by the mean as by their due instants."""
    got = delivery(*(start + k * tpot for k in range(n)), arrival=start)
    assert is_strictly_attained(Streaming(tpot=tpot), got)
    assert is_adaserve_attained(Streaming(tpot=tpot), got)
