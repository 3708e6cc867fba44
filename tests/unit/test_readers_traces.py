"""Readers of single requests: Azure, BurstGPT, LMSYS, Mooncake, AdaServe and ServeGen."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import pytest

from giusto.core.errors import ConfigError
from giusto.core.slo import Streaming
from giusto.workload.readers import Options, Trace, read
from giusto.workload.readers.servegen import Quantiles
from giusto.workload.readers.tables import Record
from giusto.workload.records import Piece


def load(reader: str, folder: Path, text: str, part: str = "", name: str = "file.csv") -> Trace:
    path = folder / name
    path.write_text(text)
    return read(f"{reader}:{path}{part}", Options(slo_unit=0.03))


# Arrivals and lengths


def test_azure_in_seconds(tmp_path: Path) -> None:
    """The first request arrives at 0."""
    trace = load("azure", tmp_path, "t_s,context_tokens,generated_tokens\n2.5,374,44\n4,396,109\n")
    assert trace.is_timed
    assert [(e.arrival, e.prompt_tokens, e.output_tokens) for e in trace.entries] == [
        (0.0, 374, 44),
        (1.5, 396, 109),
    ]


def test_azure_as_published(tmp_path: Path) -> None:
    """Dates become seconds from the first."""
    header = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    rows = "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"
    first, second = load("azure", tmp_path, header + rows).entries
    assert first.arrival == 0.0
    assert second.arrival == pytest.approx(0.052, abs=1e-5)
    with pytest.raises(ConfigError, match=r"line 2, column TIMESTAMP: expected a date and time"):
        load("azure", tmp_path, header + "yesterday,1,2\n")


BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def test_burstgpt_keeps_what_was_answered(tmp_path: Path) -> None:
    """The kind of log is the class; requests without an answer had failed."""
    rows = "5,ChatGPT,472,18,490,Conversation log\n9,GPT-4,7,0,7,API log\n45,GPT-4,9,3,12,API log\n"
    entries = load("burstgpt", tmp_path, BURST + rows).entries
    assert [(e.id, e.arrival, e.service_class, e.output_tokens) for e in entries] == [
        ("file-0", 0.0, "chat", 18),
        ("file-2", 40.0, "api", 3),
    ]
    with pytest.raises(ConfigError, match=r"column Log Type: expected one of Conversation log, "):
        load("burstgpt", tmp_path, BURST + "5,GPT-4,1,1,2,Web\n")
    with pytest.raises(ConfigError, match=r"line 1, column Log Type: is missing"):
        load("burstgpt", tmp_path, BURST.replace("Log Type", "Kind"))


def test_a_client_is_a_tenant(tmp_path: Path) -> None:
    """LMSYS' clients keep their numbers."""
    entries = load(
        "lmsys", tmp_path, "t_s,client,prompt_tokens,output_tokens\n0.0,13,13,199\n0.2,2,36,137\n"
    ).entries
    assert [entry.tenant for entry in entries] == ["client-13", "client-2"]


def test_mooncake_shares_blocks_within_the_file(tmp_path: Path) -> None:
    """Equal ids are equal pieces; milliseconds become seconds."""
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 3000, "input_length": 1536, "output_length": 0, "hash_ids": [0, 7, 8]},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    first, second = load("mooncake", tmp_path, text, name="talk.jsonl").entries
    assert first.pieces == (Piece("talk-blocks", 0, 1024),)
    assert second.pieces == (Piece("talk-blocks", 0, 512), Piece("talk-blocks", 7 * 512, 1024))
    assert (second.arrival, second.output_tokens) == (3.0, 1)
    with pytest.raises(ConfigError, match=r"talk.jsonl line 1, column hash_ids: expected a list"):
        load("mooncake", tmp_path, text.replace("[0, 1, 2]", '"0-2"'), name="talk.jsonl")


# AdaServe

ADASERVE = (
    "trace,t_ms,input_tokens,output_tokens,slo_ratio\n"
    "fast,0.0,28,256,-50.0\nslow,0.0,9,128,1.2\nfast,1500,627,256,-150.0\nfast,2000,90,256,1.2\n"
)


def test_adaserve_gives_each_class_its_pace(tmp_path: Path) -> None:
    """Ratios multiply the model's own latency; the true lengths are unknown."""
    trace = load("adaserve", tmp_path, ADASERVE, "#fast")
    assert trace.name == "adaserve:file#fast"
    assert [(e.id, e.arrival, e.service_class, e.slo) for e in trace.entries] == [
        ("fast-0", 0.0, "chat", Streaming(None, 0.05)),
        ("fast-1", 1.5, "summarise", Streaming(None, 0.15)),
        ("fast-2", 2.0, "code", Streaming(None, 1.2 * 0.03)),
    ]
    assert {(entry.max_tokens, entry.output_tokens) for entry in trace.entries} == {(256, None)}


def test_adaserve_needs_a_trace_and_a_unit(tmp_path: Path) -> None:
    """Without the name the traces are listed; relative limits need the model's latency."""
    with pytest.raises(ConfigError, match=r"file.csv holds several traces; .*: fast, slow$"):
        load("adaserve", tmp_path, ADASERVE)
    with pytest.raises(ConfigError, match=r"file.csv has no trace 'x'; .*: fast, slow$"):
        load("adaserve", tmp_path, ADASERVE, "#x")
    with pytest.raises(ConfigError, match=r"line 3, column slo_ratio: .* give it as slo_unit"):
        read(f"adaserve:{tmp_path / 'file.csv'}#slow")
    with pytest.raises(ConfigError, match=r"slo_ratio: .* or one of -50 \(chat\), .* got -60"):
        load("adaserve", tmp_path, ADASERVE.replace("-50.0", "-60"), "#fast")


# ServeGen

RATES = "t0_s,client,rate_rps,cv,iat_family,shape,scale_s\n"
QUIET = "600,3,0.5,1,Gamma,1.0,9\n600,4,0.1,1,,,\n600,5,9,1,Gamma,1,1\n"


def law(client: int, t0: int = 0) -> str:
    knots = {"input_tokens": [10, 20, 30], "output_tokens": [1, 2, 1000]}
    means = {"input_tokens_mean": 20, "output_tokens_mean": 11}
    return json.dumps({"client": client, "t0_s": t0, **knots, **means}) + "\n"


def servegen(
    folder: Path, rates: str, part: str = "#600-1200", *, seed: int = 0, limit: int | None = None
) -> Trace:
    (folder / "m_rates.csv").write_text(RATES + rates)
    (folder / "m_lengths.jsonl").write_text(law(3) + law(4))
    return read(f"servegen:{folder / 'm_rates.csv'}{part}", Options(seed=seed, limit=limit))


def test_servegen_meets_each_clients_rate(tmp_path: Path) -> None:
    """A client without lengths is left out, the others make just as many requests as recorded."""
    trace = servegen(tmp_path, QUIET)
    tenants = [entry.tenant for entry in trace.entries]
    assert (tenants.count("client-3"), tenants.count("client-4")) == (300, 60)
    assert len(tenants) == 360
    times = [entry.arrival for entry in trace.entries]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] < 600
    assert all(10 <= (entry.prompt_tokens or 0) <= 30 for entry in trace.entries)
    assert {entry.max_tokens for entry in trace.entries} == {2048}


@pytest.mark.parametrize(
    ("family", "shape", "spread"), [("Gamma", 0.25, 2.0), ("Weibull", 0.5, 5**0.5)]
)
def test_servegen_keeps_the_shape_of_gaps(
    family: str, shape: float, spread: float, tmp_path: Path
) -> None:
    """Gaps vary as their law does."""
    times = [e.arrival for e in servegen(tmp_path, f"600,3,20,1,{family},{shape},9\n").entries]
    gaps = [b - a for a, b in pairwise(times)]
    assert stdev(gaps) / mean(gaps) == pytest.approx(spread, rel=0.1)


def test_servegen_windows_agree_where_they_overlap(tmp_path: Path) -> None:
    """A part of a window has the very requests of the whole; seeds differ; a limit cuts."""
    whole = servegen(tmp_path, QUIET).entries
    part = servegen(tmp_path, QUIET, "#700-800").entries
    inside = [entry for entry in whole if 100 <= entry.arrival < 200]
    assert [(e.arrival + 100, e.prompt_tokens, e.output_tokens) for e in part] == [
        (pytest.approx(e.arrival), e.prompt_tokens, e.output_tokens) for e in inside
    ]
    assert servegen(tmp_path, QUIET).entries == whole
    assert servegen(tmp_path, QUIET, seed=1).entries != whole
    assert servegen(tmp_path, QUIET, limit=7).entries == whole[:7]


def test_lengths_keep_the_recorded_mean() -> None:
    """A far maximum does not pull the mean up, as straight lines to it would."""
    row = Record({"x": [1, 2, 1000], "x_mean": 11.0}, "here")
    drawn = [
        Quantiles.read(row, "x").draw(rng) for rng in [random.Random(0)] for _ in range(20_000)
    ]
    assert mean(drawn) == pytest.approx(11, rel=0.1)
    assert max(drawn) > 300
    flat = Quantiles.read(Record({"x": [5, 5, 5], "x_mean": 5}, "here"), "x")
    assert {flat.draw(random.Random(seed)) for seed in range(9)} == {5}
    low = Quantiles.read(Record({"x": [0, 0, 50], "x_mean": 0}, "here"), "x")
    assert {low.draw(random.Random(seed)) for seed in range(9)} == {1}


@pytest.mark.parametrize(
    ("rates", "part", "message"),
    [
        (QUIET, "", r"m_rates.csv needs a window in seconds after '#', .* got ''"),
        (QUIET, "#5-5", r"needs a window in seconds"),
        (QUIET, "#0-300", r"m_rates.csv has nothing from 0 to 300 s; it ends at 1200 s"),
        ("600,3,1,1,Pareto,1,1\n", "#600-700", r"line 2, column iat_family: expected Gamma, "),
        ("600,3,1,1,Gamma,0,1\n", "#600-700", r"line 2, column shape: must be at least 0.01"),
        ("600,3,-1,1,Gamma,1,1\n", "#600-700", r"column rate_rps: must be at least 0"),
        ("600,9,1,1,Gamma,1,1\n", "#600-700", r"m_rates.csv has no requests"),
    ],
)
def test_servegen_refuses_what_it_cannot_draw(
    rates: str, part: str, message: str, tmp_path: Path
) -> None:
    """Windows without data, unknown laws and impossible parameters are named."""
    with pytest.raises(ConfigError, match=message):
        servegen(tmp_path, rates, part)


def test_servegen_needs_its_lengths(tmp_path: Path) -> None:
    """They lie beside the rates, and rise."""
    servegen(tmp_path, QUIET)
    (tmp_path / "m_lengths.jsonl").write_text(law(3).replace("[10, 20, 30]", "[10, 5, 30]"))
    with pytest.raises(ConfigError, match=r"line 1, column input_tokens: expected at least 3 ris"):
        read(f"servegen:{tmp_path / 'm_rates.csv'}#600-1200")
    (tmp_path / "m_lengths.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*m_lengths.jsonl"):
        read(f"servegen:{tmp_path / 'm_rates.csv'}#600-1200")
