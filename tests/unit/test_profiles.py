"""Profiles: the file, the shipped ones, the grid of timed steps, and the fit to their times."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from giusto.core.errors import ConfigError
from giusto.core.latency import (
    BatchShape,
    LinearLatency,
    RooflineLatency,
    TableLatency,
    terms,
)
from giusto.profiles.fit import Timing, fit_latency, noise, residuals
from giusto.profiles.form import Latency
from giusto.profiles.grid import Case, Room, cases
from giusto.profiles.profile import DraftQuality, Profile, Residual, load, names

ROOT = Path(__file__).parents[2]
SHIPPED = ["llama-3.1-70b-4xa100", "llama-3.1-8b-a100", "qwen2.5-32b-2xa100", "smollm2-135m-cpu"]

LINEAR = LinearLatency(terms(constant=0.01, decode_seqs=0.0008))
SMALL = Profile(
    name="small",
    hardware="a machine",
    model="a model",
    measured="by thought",
    latency=LINEAR,
    block_size=16,
    num_blocks=100,
    bytes_per_block=4096,
    max_num_batched_tokens=512,
    max_num_seqs=32,
)
FULL = replace(
    SMALL,
    swap_bandwidth=2.5e10,
    slo_unit=0.0108,
    noise=0.02,
    calibration=0.95,
    residuals={"decode": Residual(9, 0.02, 0.05)},
    draft={"default": DraftQuality(0.7, 1.0), "code": DraftQuality(0.9, 0.5)},
    control={"budget": 64, "max_depth": 6},
)


def content(**changes: Any) -> dict[str, Any]:
    row = {
        "name": "small",
        "hardware": "a machine",
        "model": "a model",
        "measured": "by thought",
        "latency": {"kind": "linear", "coefficients_s": {"constant": 0.01}},
        "block_size": 16,
        "num_blocks": 100,
        "bytes_per_block": 4096,
        "max_num_batched_tokens": 512,
        "max_num_seqs": 32,
    }
    return {key: value for key, value in {**row, **changes}.items() if value != "gone"}


def read(tmp_path: Path, text: str) -> Profile:
    path = tmp_path / "mine.json"
    path.write_text(text)
    return Profile.read(path)


# The file


@pytest.mark.parametrize(
    "latency",
    [
        LINEAR,
        TableLatency(((1, 0.03), (128, 0.055)), terms(draft_steps=0.005)),
        RooflineLatency(0.0098, 6.4e-5, terms(constant=0.002)),
    ],
)
@pytest.mark.parametrize("profile", [SMALL, FULL])
def test_a_profile_reads_back_equal(tmp_path: Path, profile: Profile, latency: Latency) -> None:
    """Whatever form its step times have, and with or without what is optional."""
    profile = replace(profile, latency=latency)
    path = tmp_path / "new" / "p.json"
    profile.write(path)
    assert Profile.read(path) == profile
    assert load(str(path)) == profile


def test_a_profile_has_limits() -> None:
    """The budgets of a step, as the scheduler takes them."""
    limits = SMALL.limits
    assert (limits.max_num_batched_tokens, limits.max_num_seqs, limits.block_size) == (512, 32, 16)


def test_keys_carry_their_unit(tmp_path: Path) -> None:
    """Quantities say in the file what they are in; what is not known is left out."""
    FULL.write(tmp_path / "full.json")
    SMALL.write(tmp_path / "small.json")
    full = json.loads((tmp_path / "full.json").read_text())
    small = json.loads((tmp_path / "small.json").read_text())
    optional = {"swap_bytes_per_s", "slo_unit_s", "calibration_s", "residuals", "draft", "control"}
    assert full.keys() - small.keys() == optional
    assert full["latency"]["coefficients_s"] == {"constant": 0.01, "decode_seqs": 0.0008}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"name": "gone"}, "name is missing"),
        ({"hardware": None}, "hardware is missing"),
        ({"model": 7}, "model must be text, got 7"),
        ({"measured": " "}, "measured must not be empty"),
        ({"num_blocks": 0}, "num_blocks must be a whole number of at least 1, got 0"),
        ({"block_size": 16.0}, "block_size must be a whole number of at least 1, got 16.0"),
        ({"max_num_seqs": True}, "max_num_seqs must be a whole number of at least 1, got True"),
        ({"bytes_per_block": "4k"}, "bytes_per_block must be a whole number"),
        ({"noise": -0.1}, "noise must be a number of at least 0, got -0.1"),
        ({"noise": 1.5}, "noise must be at least 0 and below 1, got 1.5"),
        ({"slo_unit_s": 0}, "slo_unit_s must be above 0, got 0"),
        ({"slo_unit_s": math.nan}, "slo_unit_s must be a number of at least 0, got nan"),
        ({"calibration_s": math.inf}, "calibration_s must be a number of at least 0, got inf"),
        ({"swap_bytes": 1e9}, "swap_bytes is unknown, did you mean swap_bytes_per_s"),
        ({"num_block": 1}, "num_block is unknown, did you mean num_blocks"),
        ({"latency": "fast"}, "latency must be an object, got 'fast'"),
        ({"latency": {}}, "latency.kind is missing"),
        ({"latency": {"kind": "cubic"}}, "latency.kind must be one of linear, table, roofline"),
        ({"latency": {"kind": "linear"}}, "latency must give a step of one token some time"),
        (
            {"latency": {"kind": "linear", "coefficients_s": {"decode_seq": 1}}},
            "latency.coefficients_s.decode_seq is unknown, did you mean decode_seqs",
        ),
        (
            {"latency": {"kind": "linear", "coefficients_s": {"constant": -1}}},
            "latency.coefficients_s.constant must be a number of at least 0, got -1",
        ),
        (
            {"latency": {"kind": "linear", "coefficients_s": {"constant": 1}, "table_s": {}}},
            "latency.table_s is unknown",
        ),
        ({"latency": {"kind": "table"}}, "latency.table_s is missing"),
        ({"latency": {"kind": "table", "table_s": {}}}, "latency.table_s needs at least one point"),
        (
            {"latency": {"kind": "table", "table_s": {"many": 1}}},
            "latency.table_s.many must be a number of tokens",
        ),
        (
            {"latency": {"kind": "table", "table_s": {"1": 1, "01": 1}}},
            "latency.table_s.01 must be a number of tokens",
        ),
        ({"latency": {"kind": "roofline", "memory_s": 1}}, "latency.compute_s is missing"),
        ({"residuals": {"decode": {"count": 3, "median": 0.1}}}, "residuals.decode.p90 is missing"),
        (
            {"residuals": {"decode": {"count": 3, "median": 0, "p90": 0, "p99": 0}}},
            "residuals.decode.p99 is unknown, did you mean p90",
        ),
        (
            {"draft": {"chat": {"level": 0.5, "spread": 1}}},
            "draft must say what holds for classes that it does not name: default",
        ),
        (
            {"draft": {"default": {"level": 1.5, "spread": 1}}},
            "level must lie between 0 and 1, got 1.5",
        ),
        ({"control": {"budgt": 3}}, "control.budgt is unknown, did you mean budget"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, changes: dict[str, Any], complaint: str) -> None:
    """The error names the file, the field and what would be accepted."""
    with pytest.raises(ConfigError, match=rf"^profile .*mine.json: {re.escape(complaint)}"):
        read(tmp_path, json.dumps(content(**changes)))


def test_null_is_as_good_as_missing(tmp_path: Path) -> None:
    """An optional field may be there without a value."""
    nulls = dict.fromkeys(("swap_bytes_per_s", "slo_unit_s", "calibration_s", "residuals", "noise"))
    profile = read(tmp_path, json.dumps(content(**nulls)))
    assert profile == replace(SMALL, latency=LinearLatency(terms(constant=0.01)))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "mine.json, line 1: "),
        ('{\n"name": }', "mine.json, line 2: "),
        ("[]", "mine.json: expected a JSON object, got list"),
    ],
)
def test_what_is_no_object_is_no_profile(tmp_path: Path, text: str, complaint: str) -> None:
    """The error names the file, and the line where there is one."""
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        read(tmp_path, text)


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """Missing, binary or unwritable files give one sentence."""
    with pytest.raises(ConfigError, match=r"cannot read profile .*none.json: No such file"):
        load(str(tmp_path / "none.json"))
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match=r"binary.json is not UTF-8 text"):
        load(str(tmp_path / "binary.json"))
    with pytest.raises(ConfigError, match="cannot write profile"):
        SMALL.write(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"name": ""}, "name must not be empty"), ({"num_blocks": -1}, "num_blocks must be at least")],
)
def test_a_profile_in_code_is_checked_too(changes: dict[str, Any], complaint: str) -> None:
    """Made without a file, it raises ValueError."""
    with pytest.raises(ValueError, match=complaint):
        replace(SMALL, **changes)


# What is shipped


def test_the_shipped_profiles_load() -> None:
    """Each is there under its own name and says how it was measured."""
    assert names() == SHIPPED
    for name in names():
        profile = load(name)
        assert profile.name == name
        assert profile.slo_unit is not None
        assert profile.num_blocks * profile.block_size > 100_000


def test_an_unknown_name_lists_what_exists() -> None:
    """With the nearest, and that a file would do."""
    with pytest.raises(ConfigError) as caught:
        load("llama-3.1-70b")
    assert str(caught.value) == (
        "no profile 'llama-3.1-70b', did you mean llama-3.1-70b-4xa100? there are "
        f"{', '.join(SHIPPED)}, or give a .json file"
    )
    with pytest.raises(ConfigError, match=r"no profile 'zzz'; there are llama"):
        load("zzz")


def test_published_tables_are_reproduced() -> None:
    """AdaServe's verify latencies, draft steps and SLO units, as published."""
    llama, qwen = load("llama-3.1-70b-4xa100"), load("qwen2.5-32b-2xa100")
    assert llama.latency.step_time(BatchShape(nodes=512)) == pytest.approx(0.125)
    assert llama.latency.step_time(BatchShape(nodes=512, draft_steps=8)) == pytest.approx(0.165)
    assert qwen.latency.step_time(BatchShape(nodes=320)) == pytest.approx(0.075)
    assert qwen.latency.step_time(BatchShape(nodes=256, draft_steps=5)) == pytest.approx(0.086)
    assert (llama.slo_unit, qwen.slo_unit) == (0.030, 0.028)


@pytest.mark.parametrize("script", ["adaserve_tables", "roofline_profiles"])
def test_scripts_make_what_is_shipped(tmp_path: Path, script: str) -> None:
    """A shipped profile is what its script writes."""
    path = ROOT / "benchmarks" / "profiles" / f"{script}.py"
    command = [sys.executable, "-W", "error", str(path), "--folder", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    written = list(tmp_path.glob("*.json"))
    assert written
    for file in written:
        shipped = ROOT / "src" / "giusto" / "profiles" / "data" / file.name
        assert shipped.read_text() == file.read_text()


# The grid


def test_contexts_spread_around_their_mean() -> None:
    """Half to one and a half times the context, and the shape counts the new tokens."""
    case = Case(decodes=4, context=100)
    assert [held for held, _ in case.sequences] == [62, 87, 112, 137]
    assert case.shape == BatchShape(decode_seqs=4, kv_tokens=62 + 87 + 112 + 137 + 4)
    assert Case(decodes=1, context=100).sequences == [(100, 1)]


def test_a_case_is_counted_as_the_engine_counts() -> None:
    """Chunks of prompts, what was computed before them, and decodes beside them."""
    case = Case(decodes=2, context=64, prompts=2, chunk=32, before=256)
    assert case.sequences == [(48, 1), (80, 1), (256, 32), (256, 32)]
    assert case.shape == BatchShape(64, 64 * 256, 2, 130)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (Case(decodes=1, context=1), "decode"),
        (Case(prompts=1, chunk=8), "prefill"),
        (Case(prompts=1, chunk=8, before=8), "chunk"),
        (Case(decodes=1, context=1, prompts=1, chunk=8, before=8), "mixed"),
    ],
)
def test_kinds_of_steps(case: Case, kind: str) -> None:
    """Each case is reported under one kind."""
    assert kind == case.kind


def test_the_grid_covers_every_kind() -> None:
    """With the embedded engine's own limits, all five; every case within them, none twice."""
    room = Room(tokens=512, seqs=128, length=8192, num_blocks=10_000, block_size=16)
    grid = cases(room)
    assert {case.kind for case in grid} == {"decode", "prefill", "chunk", "mixed", "verify"}
    assert len(set(grid)) == len(grid)
    assert max(case.shape.num_tokens for case in grid) == 512
    assert max(case.shape.decode_seqs for case in grid) == 128


@pytest.mark.parametrize(
    "room",
    [
        Room(tokens=40, seqs=128, length=8192, num_blocks=10_000, block_size=16),
        Room(tokens=512, seqs=3, length=8192, num_blocks=10_000, block_size=16),
        Room(tokens=512, seqs=128, length=100, num_blocks=10_000, block_size=16),
        Room(tokens=512, seqs=128, length=8192, num_blocks=20, block_size=16),
    ],
)
def test_the_grid_stays_in_its_room(room: Room) -> None:
    """Tokens of a step, sequences, lengths and blocks are bounded."""
    grid = cases(room)
    assert grid
    for case in grid:
        lengths = [held + new for held, new in case.sequences]
        assert case.shape.num_tokens <= room.tokens
        assert len(lengths) <= room.seqs
        assert max(lengths) <= room.length
        assert sum(math.ceil(n / room.block_size) for n in lengths) <= room.num_blocks


def test_the_smallest_room_has_one_case() -> None:
    """A decode alone fits whatever serves at all."""
    assert cases(Room(1, 1, 2, 1, 16)) == [Case(decodes=1, context=1)]


# The fit


def timed(spread: float, rounds: int = 9) -> tuple[TableLatency, list[Timing]]:
    """The grid's cases, as a machine of known step times would have run them."""
    points = ((1, 0.0105), (8, 0.0125), (16, 0.015), (64, 0.045), (512, 0.36))
    truth = TableLatency(points, terms(decode_seqs=2e-4, kv_tokens=5e-7, prefill_kv=2e-8))
    rng = random.Random(3)
    room = Room(tokens=512, seqs=128, length=8192, num_blocks=10_000, block_size=16)
    timings = []
    for case in cases(room):
        seconds = truth.step_time(case.shape)
        noisy = tuple(seconds * math.exp(rng.gauss(0, spread)) for _ in range(rounds))
        timings.append(Timing(case.kind, case.shape, noisy))
    return truth, timings


def test_the_fit_predicts_steps_that_were_not_timed() -> None:
    """Within two percent between the cases of the grid, from times that spread by three."""
    truth, timings = timed(0.03)
    model = fit_latency(timings)
    for decodes, context, chunk in ((1, 130, 0), (6, 300, 0), (20, 100, 0), (40, 500, 100)):
        shape = BatchShape(chunk, 0, decodes, decodes * context)
        assert model.step_time(shape) == pytest.approx(truth.step_time(shape), rel=0.02)


def test_residuals_are_told_per_kind() -> None:
    """A model that is a tenth off is so on every kind; an exact one is not off at all."""
    truth, timings = timed(0.0)
    off = residuals(truth.scaled(1.1), timings)
    assert off.keys() == {"decode", "prefill", "chunk", "mixed", "verify"}
    assert {(r.median, r.p90) for r in off.values()} == {(0.1, 0.1)}
    assert sum(r.count for r in off.values()) == len(timings)
    assert {r.p90 for r in residuals(fit_latency(timings), timings).values()} == {0.0}


def test_noise_is_the_spread_of_one_shape() -> None:
    """It is found again from the times, and one burst in ten does not change much."""
    _, timings = timed(0.03)
    assert noise(timings) == pytest.approx(0.03, rel=0.1)
    burst = [replace(t, seconds=(*t.seconds[:-1], 10 * t.seconds[-1])) for t in timings]
    assert noise(burst) == pytest.approx(0.03, rel=0.3)


def test_noise_needs_more_than_one_round() -> None:
    """A step that was run once says nothing of its spread."""
    assert noise([Timing("decode", BatchShape(decode_seqs=1), (0.01,))]) == 0.0


def test_a_fit_needs_timings() -> None:
    """Nothing timed, nothing fitted."""
    with pytest.raises(ValueError, match="without measured steps"):
        fit_latency([])


def test_a_table_ends_where_the_timings_do() -> None:
    """Knots beyond the largest step would be made up."""
    _, timings = timed(0.0)
    assert fit_latency(timings).points[-1][0] == 512
    small = [t for t in timings if t.shape.num_tokens <= 20]
    assert fit_latency(small).points[-1][0] == 16
