"""Speculation in virtual time: every mode beside every policy, one truth, lengths as they are."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest

from giusto.core.errors import ConfigError
from giusto.core.latency import LinearLatency, terms
from giusto.core.slo import Streaming
from giusto.profiles.profile import DraftQuality
from harness import HONEST
from simulated import PROFILE, cluster, entry, load, replicas, run

LATENCY = LinearLatency(
    terms(constant=0.03, prefill_tokens=2e-4, decode_seqs=2e-4, nodes=2e-4, draft_steps=0.002)
)
DRAFTED = replace(
    PROFILE,
    latency=LATENCY,
    draft={"default": DraftQuality(0.8, 1.0)},
    control={"budget": 64, "draft_budget": 16},
    noise=0.0,
)
MODES = ("chain:4", "static", "adaserve", "giusto")


def streams(count: int, output: int = 40) -> list:
    slo = Streaming(None, 0.02)
    return [entry(f"r{i}", 0.1 * i, prompt=20, output=output, slo=slo) for i in range(count)]


def lengths(outcome) -> dict[str, int]:
    return {record.id: len(record.token_times) for record in outcome.records}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("policy", HONEST)
def test_every_mode_runs_beside_every_policy(policy: str, mode: str):
    """Whoever decides, with scarce memory, each answer has its own length, every plan checked."""
    entries = load(25, seed=3)
    made = run(entries, profile=DRAFTED, policy=policy, speculation=mode)
    expected = {e.id: e.output_tokens for e in entries}
    found = lengths(made)
    answered = {r.id for r in made.records if r.is_answered}
    assert {name: found[name] for name in answered} == {n: expected[n] for n in answered}


@pytest.mark.parametrize("mode", MODES)
def test_right_guesses_save_time(mode: str):
    """With a good draft a stream alone ends sooner, in fewer steps."""
    entries = streams(1, output=60)
    plain = cluster(entries, profile=DRAFTED)
    fast = cluster(entries, profile=DRAFTED, speculation=mode)
    ends = [max(r.token_times[-1] for r in made.run(entries).records) for made in (plain, fast)]
    assert ends[1] < 0.75 * ends[0]
    assert replicas(fast)[0].num_steps < 0.6 * replicas(plain)[0].num_steps


def test_a_useless_draft_costs_giusto_little():
    """Where guesses are nearly always wrong, chains pay for them and `giusto` stops asking."""
    bad = replace(DRAFTED, draft={"default": DraftQuality(0.02, 0.1)})
    entries = streams(6, output=300)
    entries = [replace(e, max_tokens=400) for e in entries]
    took = {
        mode: mean(r.delivery.tpot for r in run(entries, profile=bad, speculation=mode).records)
        for mode in ("off", "chain:4", "giusto")
    }
    assert took["giusto"] < 1.12 * took["off"]
    assert took["chain:4"] > 1.2 * took["off"]


def test_the_same_seed_gives_the_same_run():
    """Byte for byte: hidden guesses are drawn from the run's seed alone."""
    entries = load(20, seed=5)
    runs = [
        [(r.id, r.token_times) for r in made.records]
        for made in (run(entries, profile=DRAFTED, speculation="giusto", seed=7) for _ in "ab")
    ]
    assert runs[0] == runs[1]
    other = run(entries, profile=DRAFTED, speculation="giusto", seed=8)
    assert [(r.id, r.token_times) for r in other.records] != runs[0]


def test_look_ups_need_text():
    """Modes that look text up are refused where there is none."""
    with pytest.raises(ConfigError, match="looks text up"):
        run(streams(1), profile=DRAFTED, speculation="ngram")
