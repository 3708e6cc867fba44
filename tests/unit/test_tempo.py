"""Service density computed by hand, and the order and exchanges that `tempo` makes of it."""

from __future__ import annotations

import pytest

from densities import TAU, House, call, preempted
from giusto.core.errors import ConfigError
from giusto.core.events import Arrived, Estimated, Finished, Preempted, ProgramClosed, Rejected
from giusto.core.plan import Caps, Pin
from giusto.core.request import FinishReason, Reason, Request
from giusto.core.slo import BestEffort, Deadline, Streaming
from giusto.policies.base import RENEWAL
from giusto.policies.bounds import MeanLengths
from giusto.programs.base import Outlook
from harness import policy_named
from strategies import LiteralView, decoding, request

LOOSE = Deadline(1000.0)


def ask(name: str, prompt: int = 8, **more: object) -> Request:
    """A request with time enough."""
    return request(name, prompt, **{"slo": LOOSE, **more})


# Density


def test_density_is_value_over_generation_to_come() -> None:
    """A token of prompt counts one, of output two, over the bound's tokens at 20 ms each."""
    house = House("tempo")
    a = house.arrive(ask("a"), 10)
    assert house.density(a) == pytest.approx((8 + 2 * 10) / (10 * TAU))


def test_the_stated_weight_counts() -> None:
    """Twice the weight is twice the density."""
    house = House("tempo")
    a, b = house.arrive(ask("a"), 10), house.arrive(ask("b", weight=2.0), 10)
    assert house.density(b) == pytest.approx(2 * house.density(a))


def test_predicted_lateness_decays_the_value() -> None:
    """Done in 0.2 s where 0.1 was promised, it is worth half."""
    house = House("tempo")
    a = house.arrive(request("a", slo=Deadline(0.1)), 10)
    assert house.density(a) == pytest.approx(28 / 0.2 / 2)


def test_a_stream_in_time_is_worth_as_much_as_a_deadline() -> None:
    """All its tokens, before the first and for a stream that promises one part only."""
    house = House("tempo")
    for i, slo in enumerate((Streaming(1.0, 0.1), Streaming(1.0), Streaming(None, 0.1))):
        made = house.arrive(request(f"r{i}", slo=slo), 10)
        assert house.density(made) == pytest.approx(28 / 0.2)


def test_a_late_stream_loses_prompt_and_tokens_apart() -> None:
    """The prompt by its first token, a step from now; the rest by the last of the bound."""
    house = House("tempo")
    a = house.arrive(request("a", slo=Streaming(0.01, 0.001)), 10)
    last_due = 0.01 + 9 * 0.001
    expected = 8 * (0.01 / 0.02) + 2 * 10 * (last_due / 0.2)
    assert house.density(a) == pytest.approx(expected / 0.2)


def test_what_a_stream_has_earned_counts() -> None:
    """Prompt and tokens in time; of those to come the remaining bound, over their time alone."""
    house = House("tempo")
    a = request("a", computed=11, output=4, slo=Streaming(1.0, 0.1))
    a.late_tokens = 1
    house.arrive(a, 10)
    assert house.density(a) == pytest.approx((8 + 2 * 3 + 2 * 6) / (6 * TAU))


def test_best_effort_has_a_small_price() -> None:
    """A hundredth of a promise, and no lateness."""
    house = House("tempo")
    a = house.arrive(request("a"), 10)
    assert house.density(a) == pytest.approx(0.01 * 28 / 0.2)


def test_a_request_that_nobody_told_of_comes_last() -> None:
    """Unknown is worth nothing, and served all the same."""
    house = House("tempo")
    a, stranger = house.arrive(ask("a"), 10), ask("x")
    assert house.density(stranger) == 0
    assert house.order(house.view([], [stranger, a])) == ["a", "x"]


# Programs


def test_calls_of_a_program_share_its_density() -> None:
    """Live calls and expected ones, value and work of the same calls."""
    outlook = Outlook(stages=1, calls=1, prompt_tokens=10, output_tokens=20, share=0.5)
    house = House("tempo", outlooks={"x": outlook, "y": outlook})
    x = house.arrive(call("x", 8), 10)
    assert house.density(x) == pytest.approx((8 + 20 + 10 + 40) / (0.2 + 0.4))
    y = house.arrive(call("y", 4), 30)
    expected = (8 + 20 + 4 + 60 + 10 + 40) / (0.2 + 0.6 + 0.4)
    assert house.density(x) == house.density(y) == pytest.approx(expected)


def test_answered_calls_still_count_as_value() -> None:
    """What is done is at stake until the program ends, and takes no more time."""
    house = House("tempo")
    x, y = house.arrive(call("x", 8), 10), house.arrive(call("y", 4), 30)
    x.num_output_tokens = 5
    house.end(x)
    house.frame()
    assert house.density(y) == pytest.approx((8 + 10 + 4 + 60) / 0.6)


@pytest.mark.parametrize(("split", "due"), [(True, 0.4), (False, 0.8)])
def test_a_stage_has_its_share_of_the_deadline(split: bool, due: float) -> None:
    """Half of 0.8 s, counted from the program's opening; without the split all of it."""
    house = House("tempo", split=split, outlooks={"x": Outlook(share=0.5)})
    x = house.arrive(call("x", 8, deadline=0.8), 80)
    assert house.density(x) == pytest.approx((8 + 160) / 1.6 * due / 1.6)


def test_the_slowest_call_tells_whether_a_stage_is_late() -> None:
    """The program is judged by its last call, so all of its value decays with that."""
    house = House("tempo")
    house.arrive(call("x", 8, deadline=1.0), 10)
    y = house.arrive(call("y", 4, deadline=1.0), 100)
    assert house.density(y) == pytest.approx((8 + 20 + 4 + 200) / 2.2 * 1.0 / 2.0)


def test_a_program_with_a_refused_call_is_worth_nothing() -> None:
    """It can no longer be met; its other calls come last. A cancelled call loses nothing."""
    for event, is_lost in (
        (Rejected("x", 0.0, Reason.QUEUE_FULL), True),
        (Finished("x", 0.0, FinishReason.ERROR), True),
        (Finished("x", 0.0, FinishReason.ABORT), False),
    ):
        house = House("tempo")
        house.arrive(call("x", 8), 10)
        y = house.arrive(call("y", 4), 30)
        house.policy.observe(event)
        house.frame()
        assert (house.density(y) == 0) == is_lost


def test_a_call_with_a_promise_of_its_own_stands_alone() -> None:
    """It is judged alone, so it is ranked alone."""
    house = House("tempo")
    x, y = house.arrive(call("x", 8), 10), call("y", 4)
    y.slo = LOOSE
    house.arrive(y, 30)
    assert house.density(x) == pytest.approx(28 / 0.2)
    assert house.density(y) == pytest.approx(64 / 0.6)


def test_nothing_is_kept_of_who_has_ended() -> None:
    """Requests at their end, programs when they close; also those nobody told of."""
    house = House("tempo")
    x, a = house.arrive(call("x", 8), 10), house.arrive(ask("a"), 10)
    densities = house.policy.densities
    for name in (x.id, a.id, "unknown"):
        house.policy.observe(Finished(name, 0.0, FinishReason.STOP))
    assert densities._pools
    house.policy.observe(ProgramClosed("p", 0.0, 0.0, True))
    assert not densities._pools
    assert not densities._entries
    assert not densities._ranks
    assert not densities.waits._since
    assert not densities._bounds._known
    assert not densities._mean._endings._open


# Bounds


def test_bounds_are_asked_at_the_level_stated() -> None:
    """At arrival, the 95th percentile unless told otherwise."""
    for options, level in (({}, 0.95), ({"quantile": "0.5"}, 0.5)):
        house = House("tempo", **options)
        house.arrive(ask("a"), 10)
        assert house.table.asked == [("a", 0, level)]


def test_bounds_are_asked_anew_every_fifty_tokens() -> None:
    """And no sooner, unless the answer outlives its bound."""
    house = House("tempo", frame=1)
    a = house.arrive(ask("a"), 1000)
    for emitted in (1, 49, 50, 60, 99, 100):
        a.num_output_tokens = emitted
        house.step()
    assert [asked for _, asked, _ in house.table.asked] == [0, 50, 100]


def test_an_outlived_bound_is_asked_anew() -> None:
    """When less than a token of it is left; never less than a token is expected."""
    house = House("tempo", frame=1)
    a = house.arrive(ask("a"), 10.5)
    for emitted in (9, 10, 11):
        a.num_output_tokens = emitted
        house.step()
    assert [asked for _, asked, _ in house.table.asked] == [0, 10, 11]
    assert house.density(a) == pytest.approx((8 + 2 * 12) / TAU)


def test_bounds_are_renewed_as_others_end_or_news_come() -> None:
    """A predictor that learns online knows better after some endings."""
    house = House("tempo", frame=1)
    house.arrive(ask("a"), 10)
    house.policy.observe(Estimated("a", (20.0,), 0.0))
    house.step()
    assert len(house.table.asked) == 2
    for i in range(RENEWAL):
        house.policy.observe(Finished(f"r{i}", 0.0, FinishReason.STOP))
    house.step()
    assert len(house.table.asked) == 3


def test_without_an_analyzer_all_are_of_mean_length() -> None:
    """The mean of all answers so far, refused and cancelled ones left out."""
    mean = MeanLengths()
    a, b, c = (ask(name) for name in "abc")
    assert mean.remaining(a) == 1024
    a.cap = 100
    assert mean.remaining(a) == 100
    for made, tokens, reason in (
        (a, 10, FinishReason.STOP),
        (b, 20, FinishReason.LENGTH),
        (c, 90, FinishReason.ABORT),
    ):
        mean.observe(Arrived(made, 0.0))
        made.num_output_tokens = tokens
        mean.observe(Finished(made.id, 0.0, reason))
    assert mean.remaining(ask("d")) == 15
    assert mean.remaining(decoding("d")) == 14
    assert mean.remaining(b) == 1


def test_the_mean_needs_no_predictor() -> None:
    """`estimate=mean` asks nobody."""
    house = House("tempo", estimate="mean")
    a = house.arrive(ask("a"), 10)
    assert house.table.asked == []
    assert house.density(a) == pytest.approx((8 + 2 * 1024) / (1024 * TAU))


def test_nobody_is_asked_before_a_plan() -> None:
    """Predictor and matcher may hear of an arrival after the policy; who has left is forgotten."""
    house = House("tempo")
    for name in "ab":
        house.table.totals[name] = 10
        house.policy.observe(Arrived(ask(name), 0.0))
    house.end(ask("b"), FinishReason.ABORT)
    assert house.table.asked == []
    a = ask("a")
    for _ in range(2):
        assert house.order(house.view([], [a])) == ["a"]
    assert house.table.asked == [("a", 0, 0.95)]
    assert house.density(a) == pytest.approx(28 / 0.2)


# Frames


def test_time_per_step_is_the_mean_of_the_last_frames() -> None:
    """20 ms until one has ended, then the mean of ten frames' means."""
    house = House("tempo", frame=2)
    frames = house.policy.frames
    assert frames.tau == 0.02
    house.frame(seconds=0.06)
    assert frames.tau == pytest.approx(0.06)
    house.frame(seconds=0.1)
    assert frames.tau == pytest.approx(0.08)
    house.frame(10, seconds=0.04)
    assert frames.tau == pytest.approx(0.04)
    assert frames.span == pytest.approx(0.08)


def test_steps_that_take_no_time_are_survived() -> None:
    """A density is a number all the same."""
    house = House("tempo", frame=1)
    a = house.arrive(ask("a"), 10)
    house.frame(seconds=0.0)
    assert 0 < house.density(a) < 1e9


def test_densities_follow_with_the_frame() -> None:
    """Within a frame they stand; at its end time and progress count."""
    house = House("tempo", frame=3)
    a = house.arrive(ask("a"), 10)
    a.num_output_tokens = 5
    house.step()
    assert house.density(a) == pytest.approx(28 / 0.2)
    house.frame()
    assert house.density(a) == pytest.approx(28 / 0.1)


# Order


def test_the_densest_is_admitted_first() -> None:
    """Free slots go by density, at a frame's start and within it."""
    house = House("tempo")
    totals = {"a": 30, "b": 5, "c": 9}
    a, b, c = (house.arrive(ask(name), total) for name, total in totals.items())
    assert house.order(house.view([], [a, b, c])) == ["b", "c", "a"]
    assert house.order(house.view([], [a, b, c], slots=2)) == ["b", "c"]
    house.step()
    assert house.order(house.view([], [a, b, c], slots=2)) == ["b", "c"]


def test_of_a_long_line_the_densest_are_found_once_per_frame() -> None:
    """And who came or came back since; those behind them when there are not enough."""
    house = House("tempo", frame=1)
    line = [house.arrive(ask(f"r{i}"), 10 + i * 7919 % 1499) for i in range(1200)]
    house.frame()
    densities = house.policy.densities

    def first(most: int) -> list[Request]:
        return densities.first_waiting(house.view([], line), most)

    order = sorted(line, key=densities.rank)
    for most in (0, 1, 200, 256, 257, 1200):
        assert first(most) == order[:most]
    line.append(house.arrive(ask("new", 100), 10))
    assert first(1) == [line[-1]]
    back = order[-1]
    densities._ranks[back.id] = (-1e9, 0.1)
    assert first(1) == [line[-1]]
    house.policy.observe(Preempted(back.id, 0.0))
    assert first(1) == [back]


def test_calls_of_a_program_that_was_closed_elsewhere_stand_alone() -> None:
    """Its other calls may be on another replica."""
    house = House("tempo", frame=1)
    x, y = house.arrive(call("x", 8), 10), house.arrive(call("y", 4), 30)
    house.policy.observe(ProgramClosed("p", 0.0, 0.0, None))
    house.frame()
    assert house.density(x) == pytest.approx(28 / 0.2)
    assert house.density(y) == pytest.approx(64 / 0.6)


def test_by_length_alone() -> None:
    """`rank=sjf` forgets value and promises."""
    house = House("tempo", rank="sjf")
    a = house.arrive(ask("a", 60), 30)
    b = house.arrive(request("b", 4), 29)
    assert house.order(house.view([], [a, b])) == ["b", "a"]


def test_the_least_dense_is_the_first_to_lose_its_blocks() -> None:
    """Residents are served in order of density."""
    house = House("tempo")
    running = [
        house.arrive(decoding(name, slo=LOOSE), total)
        for name, total in zip("abc", (40, 9, 90), strict=True)
    ]
    view = house.view(running, [])
    view.free_blocks = 1
    plan = house.plan(view)
    assert [grant.request_id for grant in plan.grants] == ["b", "a"]
    assert preempted(plan) == ["c"]


def test_prompts_leave_residents_their_next_token() -> None:
    """However dense a prompt is, what is in the batch goes on."""
    house = House("tempo")
    old = house.arrive(decoding("old", slo=LOOSE), 90)
    new = house.arrive(ask("new", 100, computed=4), 2)
    grants = [(g.request_id, g.num_tokens) for g in house.plan(house.view([old, new], [])).grants]
    assert grants == [("new", 63), ("old", 1)]


def test_the_floor_comes_first() -> None:
    """Whoever has waited half its span for a first token gets a twentieth of the step."""
    house = House("tempo")
    a, b = house.arrive(ask("a"), 10), house.arrive(request("b"), 90)
    house.now = 31.0
    plan = house.plan(house.view([], [a, b]))
    assert (plan.grants[0].request_id, plan.grants[0].num_tokens) == ("b", 3)


# Exchanges


def full_house(total: float, **options: object) -> tuple[House, LiteralView]:
    """One slot, a resident of density 28 / 0.18 and a request of 60 + 2 * total that waits."""
    house = House("tempo", **options)
    old = house.arrive(decoding("old", slo=LOOSE), 10)
    new = house.arrive(ask("new", 60), total)
    return house, house.view([old], [new], slots=1)


def test_who_is_denser_by_more_than_the_mean_takes_a_place() -> None:
    """The new one against the least dense resident and the mean of all: here twice one density."""
    for total, place in ((9, ["new"]), (15, ["old"])):
        house, view = full_house(total)
        threshold = 2 * house.density(view.running[0])
        assert (house.density(view.waiting[0]) > threshold) == (place == ["new"])
        plan = house.plan(view)
        assert [grant.request_id for grant in plan.grants] == place
        assert preempted(plan) == (["old"] if place == ["new"] else [])


def test_exchanges_happen_at_the_start_of_a_frame_only() -> None:
    """Every twenty steps."""
    house, view = full_house(4)
    seen = []
    for _ in range(41):
        now = house.view(list(view.running), list(view.waiting), slots=1)
        seen.append(bool(preempted(house.plan(now))))
        house.step()
    assert [i for i, is_exchange in enumerate(seen) if is_exchange] == [0, 20, 40]


def test_the_pin_stays() -> None:
    """The oldest resident loses its place to nobody."""
    house, view = full_house(4)
    view.pin = Pin("old", False)
    assert preempted(house.plan(view)) == []


def test_best_effort_evicts_nobody() -> None:
    """However dense it is: it gets what is left over."""
    house, view = full_house(4, best_effort=100.0)
    view.waiting[0].slo = BestEffort()
    house.arrive(view.waiting[0], 4)
    assert house.density(view.waiting[0]) > 10 * house.density(view.running[0])
    assert preempted(house.plan(view)) == []


def test_nobody_leaves_for_who_would_not_fit_all_the_same() -> None:
    """One place must be enough for the first chunk of the new one."""
    house, view = full_house(4)
    view.free_blocks = 10
    assert preempted(house.plan(view)) == []
    view.free_blocks = 13
    assert preempted(house.plan(view)) == ["old"]


def test_exchanges_are_bounded() -> None:
    """`swaps` at most at a time; none with 0."""
    for swaps in (0, 1, 2):
        house = House("tempo", swaps=swaps)
        running = [house.arrive(decoding(f"o{i}", slo=LOOSE), 50 + i) for i in range(4)]
        waiting = [house.arrive(ask(f"n{i}", 4), 1) for i in range(4)]
        plan = house.plan(house.view(running, waiting, slots=4))
        assert preempted(plan) == ["o3", "o2"][:swaps]


def test_a_resident_in_flight_is_let_land_before_it_goes() -> None:
    """With a step in flight it gets no further grant, and is evicted by the next plan."""
    house, view = full_house(4)
    view.caps = Caps(lookahead=1)
    view.running[0].launch(1)
    assert house.order(view) == []
    landed = decoding("old", slo=LOOSE)
    view = house.view([landed], list(view.waiting), slots=1)
    view.caps = Caps(lookahead=1)
    plan = house.plan(view)
    assert preempted(plan) == ["old"]
    assert [grant.request_id for grant in plan.grants] == ["new"]


def test_where_nobody_can_be_paused_it_is_evicted_or_served() -> None:
    """In flight it goes on being served, else it leaves in the same step."""
    for in_flight, served in ((1, ["old"]), (0, ["new"])):
        house, view = full_house(4)
        view.caps = Caps(pause=False, lookahead=1)
        if in_flight:
            view.running[0].launch(1)
        assert house.order(view) == served


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": "edf"}, "rank must be one of density, sjf, got 'edf'"),
        ({"estimate": "max"}, "estimate must be one of bound, mean, got 'max'"),
        ({"quantile": 1}, "quantile must lie between 0 and 1, got 1.0"),
        ({"refresh": 0}, "refresh must be at least 1, got 0"),
        ({"w_prompt": -1}, "w_prompt must be at least 0, got -1.0"),
        ({"w_decode": 0}, "w_decode must be above 0, got 0.0"),
        ({"best_effort": "inf"}, "best_effort must be at least 0, got inf"),
        ({"delta": "nan"}, "delta must be at least 0, got nan"),
        ({"alpha": 0}, "alpha must be above 0, got 0.0"),
        ({"frame": 0}, "frame must be at least 1, got 0"),
        ({"swaps": -1}, "swaps must be at least 0, got -1"),
    ],
)
def test_bad_values_are_refused(options: dict[str, object], message: str) -> None:
    """The error names the option and what it may be."""
    with pytest.raises(ConfigError, match=f"policy tempo: {message}"):
        policy_named("tempo", **options)
