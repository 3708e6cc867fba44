"""The registry, the floor, and the order of each named policy on literal views."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from giusto.core.errors import ConfigError
from giusto.core.latency import LinearLatency
from giusto.core.plan import Caps, Limits, Plan, Want, check
from giusto.core.slo import BestEffort, Deadline, Streaming
from giusto.policies import DEFAULT, REGISTRY, fcfs, make
from giusto.policies.base import Dependencies, with_floor
from giusto.predict.base import Constant
from harness import LATENCY, Truth, policy_named
from strategies import LiteralView, decoding, request

DEPS = Dependencies(LATENCY, Constant(32), Truth({}))


def grants(plan: Plan) -> list[str]:
    return [grant.request_id for grant in plan.grants]


def order(name: str, view: LiteralView, **options: object) -> list[str]:
    plan = make(name, DEPS, options).plan(view)
    check(plan, view)
    return grants(plan)


# Registry


def test_the_default_is_registered() -> None:
    """The default policy has a name in the registry."""
    assert DEFAULT in REGISTRY


@pytest.mark.parametrize("name", REGISTRY)
def test_every_policy_says_what_it_does(name: str) -> None:
    """A module has parameters, a first line to print and its source."""
    module = REGISTRY[name]
    assert module.__doc__.splitlines()[0].endswith(".")
    assert "Source: " in module.__doc__
    assert make(name, DEPS).plan(LiteralView()) == Plan(7)


def test_an_unknown_policy_names_the_nearest() -> None:
    """A misspelt name is answered with the one that was meant and all there are."""
    with pytest.raises(ConfigError, match=r"'sarrathi'; did you mean sarathi\? \(there are: "):
        make("sarrathi", DEPS)


def test_a_policy_that_needs_more_than_the_driver_has_is_not_built(tmp_path: Path) -> None:
    """It fails when it is made, not by quietly doing less."""
    source = Path(fcfs.__file__).read_text()
    path = tmp_path / "swapper.py"
    path.write_text(f"{source}\nNEEDS = ('swap',)\n")
    with pytest.raises(ConfigError, match=r"swapper.py needs swap, which this engine cannot do"):
        make(str(path), DEPS)
    deps = Dependencies(LATENCY, Constant(10), caps=Caps(swap=True))
    view = LiteralView([decoding("a")], [request("b")])
    assert [grant.request_id for grant in make(str(path), deps).plan(view).grants] == ["a", "b"]


def test_a_policy_may_come_from_a_file(tmp_path: Path) -> None:
    """What is wrong with the file as it is now, of one size and second with the last or not, is
    said in one sentence; nothing is left beside it."""
    with pytest.raises(ConfigError, match=r"there is no file .*mine.py"):
        make(str(tmp_path / "mine.py"), DEPS)
    for text, message in {
        "x = 1": "needs a dataclass Parameters and make",
        "1 / 0": "mine.py: ZeroDivisionError: division by zero",
    }.items():
        (tmp_path / "mine.py").write_text(text)
        os.utime(tmp_path / "mine.py", (1e9, 1e9))
        with pytest.raises(ConfigError, match=message):
            make(str(tmp_path / "mine.py"), DEPS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_giusto_pauses_nobody_where_it_cannot() -> None:
    """On a driver without pauses every decoding resident is served in every step."""
    ahead = [decoding(f"r{i}", slo=BestEffort()) for i in range(6)]
    stream = decoding("s", slo=Streaming(1.0, 0.05), arrival=9.5)
    lean = LinearLatency((0.001, 0.0, 0.0, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0))
    served = {}
    for pause in (True, False):
        policy, _ = policy_named("giusto", lean)
        view = LiteralView([stream, *ahead], caps=Caps(pause=pause))
        served[pause] = len(policy.plan(view).grants)
    assert served[True] < served[False] == 7


def test_an_unknown_option_names_the_nearest() -> None:
    """A misspelt option does not pass silently; a policy without options says so."""
    with pytest.raises(ConfigError, match=r"no option 'chunk_token'; did you mean chunk_tokens\?"):
        make("sarathi", DEPS, {"chunk_token": 1})
    with pytest.raises(ConfigError, match=r"no option 'x' \(there are: none\)"):
        make("edf", DEPS, {"x": 1})


@pytest.mark.parametrize("text", ["false", "No", "off", "0", False])
def test_options_come_as_text_or_values(text: object) -> None:
    """Text is read as the type of the default."""
    assert make("fcfs", DEPS, {"chunked_prefill": text}).parameters.chunked_prefill is False
    assert make("sarathi", DEPS, {"chunk_tokens": "64"}).parameters.chunk_tokens == 64


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sarathi", {"chunk_tokens": "many"}, "sarathi.chunk_tokens must be a int"),
        ("sarathi", {"chunk_tokens": 0}, "policy sarathi: chunk_tokens must be at least 1"),
        ("fcfs", {"chunked_prefill": "maybe"}, "fcfs.chunked_prefill must be a bool"),
    ],
)
def test_bad_values_are_settings_that_cannot_be_honoured(
    name: str, options: dict[str, object], message: str
) -> None:
    """The error names the policy and the option."""
    with pytest.raises(ConfigError, match=message):
        make(name, DEPS, options)


# Orders


def test_fcfs_serves_residents_then_the_queue() -> None:
    """In order of residence, then of arrival, whatever was promised."""
    view = LiteralView(
        [decoding("b", slo=Deadline(99.0)), decoding("a", slo=Deadline(1.0))],
        [request("c"), request("d", slo=Deadline(1.0))],
    )
    assert order("fcfs", view) == ["b", "a", "c", "d"]


def test_fcfs_may_keep_prompts_whole() -> None:
    """`chunked_prefill=false` leaves a prompt that does not fit for the next step."""
    view = LiteralView([decoding("a")], [request("b", 64)])
    assert order("fcfs", view, chunked_prefill=False) == ["a"]
    assert order("fcfs", view) == ["a", "b"]


def test_priority_serves_the_smaller_number_first() -> None:
    """Residents before the queue, ties by arrival."""
    view = LiteralView(
        [decoding("a", priority=2), decoding("b", priority=1)],
        [
            request("c", priority=5, arrival=3.0),
            request("d", priority=0, arrival=9.0),
            request("e", priority=5, arrival=1.0),
        ],
    )
    assert order("priority", view) == ["b", "a", "d", "e", "c"]


def test_sarathi_serves_decodes_before_prompts() -> None:
    """Streams are not stalled: prompts share what the chunk leaves."""
    view = LiteralView([request("a", 60, computed=8), decoding("b")], [request("c")])
    plan = make("sarathi", DEPS, {"chunk_tokens": 32}).plan(view)
    assert [(g.request_id, g.num_tokens) for g in plan.grants] == [("b", 1), ("a", 31)]


def test_sarathi_never_cuts_decodes() -> None:
    """More decodes than the chunk holds are all served."""
    view = LiteralView([decoding(name) for name in "abcd"])
    assert order("sarathi", view, chunk_tokens=2) == ["a", "b", "c", "d"]


def test_edf_serves_what_is_due_first() -> None:
    """Deadlines and next tokens compare by their due time, residents and queue alike."""
    view = LiteralView(
        [decoding("a", slo=Deadline(30.0)), decoding("b", slo=Streaming(20.0, 1.0))],
        [request("c", slo=Deadline(12.0)), request("d", slo=Streaming(25.0))],
    )
    assert order("edf", view) == ["c", "b", "d", "a"]


def test_edf_serves_the_missed_after_the_keepable_and_best_effort_last() -> None:
    """What can no longer be kept is never urgent, nor is what was demoted."""
    demoted = decoding("d", slo=Deadline(11.0))
    demoted.is_demoted = True
    view = LiteralView(
        [decoding("a", slo=BestEffort()), decoding("b", slo=Deadline(5.0)), demoted],
        [request("c", slo=Deadline(99.0)), request("e", slo=BestEffort())],
    )
    assert order("edf", view) == ["c", "b", "d", "a", "e"]


# The floor


def floored(view: LiteralView, *names: str) -> list[tuple[str, int | None]]:
    return [(w.request_id, w.max_tokens) for w in with_floor(map(Want, names), view)]


def test_nobody_needs_the_floor_before_half_its_span() -> None:
    """Up to 30 of 60 seconds the order stands as it is."""
    view = LiteralView([decoding("a")], [request("b")], now=30.0)
    assert floored(view, "a", "b") == [("a", None), ("b", None)]
    assert floored(LiteralView(now=99.0)) == []


def test_the_longest_wait_for_a_first_token_comes_first_then() -> None:
    """It gets a twentieth of the step, once, wherever the policy had put it."""
    view = LiteralView([decoding("a")], [request("b"), request("c", arrival=1.0)], now=31.0)
    view.limits = Limits(100, 8, 4)
    assert floored(view, "a", "c", "b") == [("b", 5), ("a", None), ("c", None)]
    assert floored(view, "a") == [("b", 5), ("a", None)]


def test_the_floor_follows_a_request_into_its_prompt() -> None:
    """A resident without a first token still counts as waiting; one with a token does not."""
    view = LiteralView([request("a", 60, computed=4), decoding("z")], [request("b")], now=31.0)
    assert floored(view, "z")[0] == ("a", 3)


def test_a_shorter_span_of_its_own_counts() -> None:
    """Best effort may state how long it bears to wait."""
    view = LiteralView([], [request("a", slo=BestEffort(4.0))], now=3.0)
    assert floored(view, "b") == [("a", 3), ("b", None)]


def test_a_short_span_does_not_wait_behind_a_long_one() -> None:
    """Whoever came before it, and however many."""
    line = [request(f"u{i}", arrival=0.1 * i) for i in range(3)]
    line.append(request("a", slo=BestEffort(4.0), arrival=1.0))
    view = LiteralView([], line, now=3.5)
    assert floored(view)[0][0] == "a"
    view.now = 33.1
    assert floored(view)[0][0] == "a", "it is due since 3 s, the others since 30 s"


def test_best_effort_is_promised_the_floor_missed_promises_only_borrow_it() -> None:
    """A flood of missed requests that came before it does not keep it waiting."""
    flood = [request(f"u{i}", slo=Streaming(1.0)) for i in range(3)]
    view = LiteralView([], [*flood, request("b", arrival=0.5), request("c", arrival=0.7)], now=31.0)
    assert floored(view)[0][0] == "b"
    view.waiting = flood
    assert floored(view)[0][0] == "u0"


def test_a_single_token_is_the_least_floor() -> None:
    """Where a twentieth is less than a token, it is one."""
    view = LiteralView([], [request("a")], limits=Limits(4, 8, 4), now=31.0)
    assert floored(view) == [("a", 1)]


def test_policies_with_the_floor_serve_the_starved_first() -> None:
    """EDF and priority put it before the most urgent."""
    view = LiteralView([decoding("a", priority=-1, slo=Deadline(99.0))], [request("b")], now=31.0)
    for name in ("edf", "priority"):
        assert order(name, view)[0] == "b"


def test_a_policy_is_built_with_its_predictor() -> None:
    """The harness hands out policy and predictor together."""
    policy, lengths = policy_named("giusto")
    assert policy.forecast.lengths is lengths
