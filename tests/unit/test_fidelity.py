"""benchmarks/fidelity: what it compares, when it repeats, and what it keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from giusto.bench import results
from giusto.core.events import Arrived, Finished, Stepped
from giusto.core.latency import BatchShape
from giusto.core.plan import StepOutcome, StepTimes
from giusto.core.request import FinishReason, Request, Submission
from giusto.core.slo import Deadline, Streaming
from giusto.profiles.profile import Profile, load
from giusto.workload import records

FOLDER = Path(__file__).parents[2] / "benchmarks" / "fidelity"
RATES = (0.4, 0.8, 1.2)


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return __import__("fidelity")


@pytest.fixture
def compare(fidelity: ModuleType) -> ModuleType:
    return __import__("compare")


@pytest.fixture
def steps(fidelity: ModuleType) -> ModuleType:
    return __import__("steps")


# Steps


def stepped(started: float, ended: float) -> Stepped:
    outcome = StepOutcome(0, started, ended, BatchShape(), times=StepTimes(plan=0.001))
    return Stepped(outcome, ended)


def test_gaps_are_between_steps_that_somebody_waits_for(steps: ModuleType) -> None:
    """The time in which nobody is there counts for nothing, whoever came meanwhile."""
    log: list[Any] = []
    observer = steps.StepLog(log.append)
    arrived = [Arrived(Request.of(Submission(name, 0.0, 4)), 0.0) for name in "ab"]
    done = [Finished(name, 0.0, FinishReason.STOP, None) for name in "ab"]
    for event in (
        arrived[0],
        stepped(1.0, 2.0),
        stepped(2.5, 3.0),
        done[0],
        arrived[1],
        stepped(9.0, 10.0),
        done[1],
    ):
        observer.observe(event)
    observer.settle()
    assert [step.num_open for step in log] == [1, 0, 0]
    assert steps.gaps(log) == [0.5]
    assert [steps.Step(*json.loads(steps.to_line(step))) for step in log] == log


# Bars


def line(compare: ModuleType, load: str, figure: str, *values: float, simulated: float) -> Any:
    engine = [{figure: value} for value in values]
    (found,) = compare.lines(load, engine, [{figure: simulated}])
    return found


@pytest.mark.parametrize(
    ("load", "figure", "simulated", "is_met"),
    [
        ("light", "step time median", 104.9, True),
        ("light", "step time median", 105.1, False),
        ("knee", "TPOT median", 90.1, True),
        ("knee", "E2E median", 110.1, False),
        ("knee", "TTFT median", 114.9, True),
        ("light", "TTFT p90", 80.1, True),
        ("light", "step time p90", 121.0, False),
        ("light", "attainment chat", 95.1, True),
        ("light", "attainment chat", 94.9, False),
        ("overload", "E2E median", 119.0, True),
        ("overload", "E2E median", 121.0, False),
        ("overload", "TTFT median", 900.0, None),
        ("overload", "attainment chat", 1.0, None),
    ],
)
def test_bars(
    compare: ModuleType, load: str, figure: str, simulated: float, is_met: bool | None
) -> None:
    """Step time 5 %, TPOT and E2E 10, TTFT 15, p90 20, attainment 5 points; overload: E2E 20."""
    assert line(compare, load, figure, 100.0, 100.0, simulated=simulated).is_met is is_met


def test_a_wider_spread_of_the_engine_widens_the_bar(compare: ModuleType) -> None:
    """What the engine does not repeat itself is not asked of the simulator."""
    wide = line(compare, "light", "step time median", 90.0, 100.0, 105.0, simulated=114.0)
    assert (wide.spread, wide.error, wide.is_met) == (0.15, pytest.approx(0.14), True)
    assert line(compare, "light", "step time median", 99.0, 101.0, simulated=114.0).is_met is False


def test_infinite_figures_agree_with_infinite_ones_only(compare: ModuleType) -> None:
    """A p90 of requests that were not answered is met by the same, and by nothing else."""
    both = line(compare, "knee", "TTFT p90", math.inf, math.inf, simulated=math.inf)
    one = line(compare, "knee", "TTFT p90", 50.0, 50.0, simulated=math.inf)
    assert (both.error, both.is_met) == (0.0, True)
    assert (one.error, one.is_met) == (math.inf, False)
    assert compare.row(one)[-1] == "NOT met"


# Runs


def test_unsteady_runs_are_repeated(compare: ModuleType) -> None:
    """More than 5 % between the loops: again, three times at most, each told."""
    done: list[str] = []
    seconds = iter([1.0, 1.06, 1.0, 0.94, 1.0, 1.04])
    found = compare.steady(
        lambda: done.append("quiet"), lambda: done.append("run"), lambda: next(seconds), done.append
    )
    assert found == (1.0, 1.04)
    told = [word for word in done if "does not count" in word]
    assert (done.count("quiet"), done.count("run"), len(told)) == (3, 3, 2)
    restless = iter([1.0, 2.0] * 9)
    done.clear()
    with pytest.raises(SystemExit, match="does not keep its speed"):
        compare.steady(lambda: None, lambda: done.append("run"), lambda: next(restless), str)
    assert done == ["run"] * 4


def sent(rate: float) -> list[records.Entry]:
    """Twenty requests, evenly apart."""
    kinds = [("chat", Streaming(0.5, 0.05), 90), ("tool", Deadline(3.0), 30)]
    return [
        records.Entry(
            f"{name}-{k}",
            k / rate,
            name,
            prompt_tokens=40 + 9 * k,
            output_tokens=tokens + k,
            slo=slo,
        )
        for k, (name, slo, tokens) in enumerate(kinds * 10)
    ]


def recorded(fidelity: ModuleType, steps: ModuleType, out: Path, profile: Profile) -> None:
    """Runs as an engine would leave them that does what the simulator says, at half the speed."""
    for rate in RATES:
        for number in range(2):
            folder = out / f"{rate:g}" / str(number)
            folder.mkdir(parents=True)
            records.write(folder / "sent.jsonl", sent(rate))
            (folder / "loops.json").write_text("[1.9, 2.1]")
            run = fidelity.Run(folder, rate, 15.0, "fcfs", out / "idle.json")
            result, log = fidelity.replay(run, profile, number)
            results.write(folder / "result.json", [result])
            (folder / "steps.jsonl").write_text("".join(map(steps.to_line, log)))


def never(*_: object) -> None:
    raise AssertionError("this run was there already")


@pytest.mark.parametrize("is_right", [True, False])
def test_runs_that_are_there_are_compared(
    fidelity: ModuleType,
    steps: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_right: bool,
) -> None:
    """Nothing is run again; an engine that does as simulated is met, at whatever speed.

    One that is a fifth slower than its loops say is not.
    """
    machine = str(tmp_path / "machine.json")
    base = replace(load("smollm2-135m-cpu"), calibration=1.0)
    out = tmp_path / "out"
    recorded(fidelity, steps, out, base)
    replace(base, calibration=1.0 if is_right else 1.25).write(Path(machine))
    monkeypatch.setattr(fidelity, "bench", never)
    words = ["--policy", "fcfs", "--profile", machine, "--duration", "15", "--runs", "2"]
    fidelity.main([*words, "--out", str(out)])
    shown = capsys.readouterr().out
    assert shown.count("requests replayed") == 6
    assert "speed 0.500" in shown or not is_right
    assert ("NOT met" not in shown) is is_right
    assert "knee: 0.8/s, 2 runs" in shown
    with pytest.raises(SystemExit, match="give another --out"):
        fidelity.main([*words, "--policy", "edf", "--out", str(out)])


def test_an_engine_run_is_kept_once_it_is_whole(
    fidelity: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The idle machine is measured once, by a server of its own; the loops are written last."""
    asked: list[tuple[str, ...]] = []

    def bench(run: Any, folder: Path, *flags: str) -> None:
        assert not run.is_done
        run.idle.write_text("{}")
        asked.append(flags)

    patches: dict[str, Callable[..., Any]] = {
        "bench": bench,
        "loop": lambda: 1.0,
        "wait_until_quiet": lambda: None,
    }
    for name, instead in patches.items():
        monkeypatch.setattr(fidelity, name, instead)
    runs = [
        fidelity.Run(tmp_path / str(k), 0.8, 300.0, "giusto", tmp_path / "idle.json")
        for k in range(2)
    ]
    for run in runs:
        fidelity.measure(run)
    assert [flags[:2] for flags in asked] == [
        ("--num-prompts", "1"),
        ("--request-rate", "0.8"),
        ("--request-rate", "0.8"),
    ]
    assert [(run.is_done, run.loops) for run in runs] == [(True, [1.0, 1.0])] * 2


def test_wrong_use_is_explained(
    fidelity: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three rising rates, and a profile that knows its machine's speed."""
    for words in (["--rate", "1"], ["--rate", "3", "--rate", "2", "--rate", "1"]):
        with pytest.raises(SystemExit):
            fidelity.main(words)
        assert "give --rate three times, rising" in capsys.readouterr().err
    path = tmp_path / "blind.json"
    replace(load("smollm2-135m-cpu"), calibration=None).write(path)
    with pytest.raises(SystemExit, match="has no calibration"):
        fidelity.main(["--profile", str(path)])
