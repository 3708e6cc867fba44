"""Many runs in one file: written after each, resumed, in order, intact at any time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from giusto import build
from giusto.bench import results
from giusto.commands.cells import Cells, run_cells
from giusto.core.errors import ConfigError
from giusto.sim.asks import Terms
from giusto.sim.load import Load
from giusto.sim.run import SimRun
from giusto.workload import records
from simulated import PROFILE, load, settings

Result = dict[str, Any]


def grid(workload: str = "chat", policies: str = "fcfs sarathi", seeds: int = 2) -> list[SimRun]:
    return [
        SimRun(settings(policy=policy, seed=seed), Load(workload, seed=seed), policy)
        for policy in policies.split()
        for seed in range(seeds)
    ]


def fake(run: SimRun) -> Result:
    """A result that takes no time."""
    return {**run.about, "attainment": 0.5, "distributions": {"ttft": [1.0, float("inf")]}}


def saved(path: Path) -> list[Result]:
    found: list[Result] = json.loads(path.read_text())["runs"]
    return found


def names(found: list[Result]) -> list[tuple[str, int]]:
    return [(run["policy"], run["seed"]) for run in found]


ALL = [("fcfs", 0), ("fcfs", 1), ("sarathi", 0), ("sarathi", 1)]


# Writing


def test_the_file_is_written_after_each_run(tmp_path: Path) -> None:
    """After the k-th run it holds k results, and is whole JSON."""
    path = tmp_path / "deep" / "out.json"
    cells = Cells(grid(), path, is_resuming=False)
    for number, _ in enumerate(run_cells(cells, fake, 1), start=1):
        assert names(saved(path)) == ALL[:number]


def test_order_does_not_depend_on_who_was_first(tmp_path: Path) -> None:
    """Results stand in the order of the runs, in the file and for the table."""
    path = tmp_path / "out.json"
    cells = Cells(grid(), path, is_resuming=False)
    for at in (3, 0, 2, 1):
        cells.put(at, fake(cells.runs[at]))
        assert names(saved(path)) == names(cells.results)
    assert names(cells.results) == ALL


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is replaced as a whole: whoever reads it meanwhile sees the last state."""
    path = tmp_path / "out.json"
    cells = Cells(grid(), path, is_resuming=False)
    cells.put(0, fake(cells.runs[0]))
    write_text: Callable[..., int] = Path.write_text

    def cut_short(target: Path, text: str, **more: Any) -> int:
        write_text(target, text[: len(text) // 2], **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", cut_short)
        with pytest.raises(KeyboardInterrupt):
            cells.put(1, fake(cells.runs[1]))
    assert names(saved(path)) == ALL[:1]
    cells.put(1, fake(cells.runs[1]))
    assert names(saved(path)) == ALL[:2]
    assert os.listdir(tmp_path) == ["out.json"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """What it points at is replaced."""
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    results.write(link, [fake(grid()[0])])
    assert link.is_symlink()
    assert names(saved(target)) == ALL[:1]


def test_what_is_no_file_is_written_to() -> None:
    """A device is not replaced."""
    results.write(Path(os.devnull), [fake(grid()[0])])
    assert not Path(os.devnull).is_file()


def test_what_cannot_be_written_is_refused_before_the_first_run(tmp_path: Path) -> None:
    """Not after hours."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        Cells(grid(), tmp_path / "file" / "out.json", is_resuming=False)


# Resuming


def test_a_resumed_sweep_skips_what_is_there(tmp_path: Path) -> None:
    """Only what is missing runs; the file ends with all."""
    path = tmp_path / "out.json"
    for at in (2, 0):
        first = Cells(grid(), path, is_resuming=True)
        first.put(at, fake(first.runs[at]))
    ran: list[SimRun] = []
    again = Cells(grid(), path, is_resuming=True)
    assert again.missing == [1, 3]
    list(run_cells(again, lambda run: ran.append(run) or fake(run), 1))
    assert names([run.about for run in ran]) == [ALL[1], ALL[3]]
    assert names(saved(path)) == ALL


def test_foreign_runs_are_kept(tmp_path: Path) -> None:
    """Runs of another sweep, or of a server, stay in the file before this one's."""
    path = tmp_path / "out.json"
    results.write(path, [{"backend": "giusto", "policy": "fcfs", "seed": 0, "attainment": 0.9}])
    cells = Cells(grid(), path, is_resuming=True)
    assert cells.missing == [0, 1, 2, 3]
    list(run_cells(cells, fake, 1))
    assert [run["backend"] for run in saved(path)] == ["giusto"] + 4 * ["simulator"]
    assert names(cells.results) == ALL


def test_without_resuming_the_file_is_begun_anew(tmp_path: Path) -> None:
    """`simulate` answers what it was asked, and nothing older."""
    path = tmp_path / "out.json"
    list(run_cells(Cells(grid(), path, is_resuming=False), fake, 1))
    cells = Cells(grid(policies="edf", seeds=1), path, is_resuming=False)
    list(run_cells(cells, fake, 1))
    assert names(saved(path)) == [("edf", 0)]


def test_an_empty_file_is_a_sweep_that_was_cut_short_early(tmp_path: Path) -> None:
    """It is begun; a file that holds something else is refused and left alone."""
    path = tmp_path / "out.json"
    path.touch()
    assert Cells(grid(), path, is_resuming=True).missing == [0, 1, 2, 3]
    path.write_text("my notes")
    with pytest.raises(ConfigError, match="is no result file"):
        Cells(grid(), path, is_resuming=True)
    assert path.read_text() == "my notes"


def test_a_run_that_is_asked_for_twice_is_found_twice(tmp_path: Path) -> None:
    """A policy named twice has two rows, and a resumed sweep runs neither again."""
    path = tmp_path / "out.json"
    runs = grid(policies="fcfs fcfs", seeds=1)
    list(run_cells(Cells(runs, path, is_resuming=True), fake, 1))
    again = Cells(runs, path, is_resuming=True)
    assert again.missing == []
    assert len(again.results) == 2


LINKED = replace(PROFILE, swap_bandwidth=1e9)
BASE = SimRun(settings(), Load("chat"), "fcfs")
OTHERS = {
    "policy": replace(BASE, label="sarathi"),
    "rate": replace(BASE, load=Load("chat", rate=2.0)),
    "seed": replace(BASE, load=Load("chat", seed=2)),
    "duration": replace(BASE, load=Load("chat", duration=9.0)),
    "count": replace(BASE, load=Load("chat", count=9)),
    "answers": replace(BASE, load=Load("chat", answers_seed=3)),
    "replicas": replace(BASE, settings=settings(replicas=2)),
    "router": replace(BASE, settings=settings(replicas=2, router="locality")),
    "budget": replace(BASE, settings=settings(max_num_batched_tokens=64)),
    "slots": replace(BASE, settings=settings(max_num_seqs=4)),
    "blocks": replace(BASE, settings=settings(num_blocks=50)),
    "cache": replace(BASE, settings=settings(prefix_caching=False)),
    "lookahead": replace(BASE, settings=settings(lookahead=1)),
    "error": replace(BASE, settings=settings(model_error=0.0)),
    "noise": replace(BASE, settings=settings(noise=0.0)),
    "speed": replace(BASE, settings=settings(speed=2.0)),
    "swap": replace(BASE, settings=settings(profile=LINKED, swap_space=1.0)),
    "overlap": replace(BASE, settings=settings(overlap=0.5)),
    "classes": replace(BASE, settings=settings(classes={"chat": Terms(weight=3.0)})),
}


def test_different_runs_are_told_apart(tmp_path: Path) -> None:
    """Whatever changes a run is in what is said about it, and survives the file."""
    runs = [BASE, *OTHERS.values()]
    path = tmp_path / "out.json"
    results.write(path, [run.about for run in runs])
    found = results.read(path)
    assert found == [run.about for run in runs]
    for name, other in OTHERS.items():
        assert other.about != BASE.about, name
    assert replace(BASE, settings=settings()).about == BASE.about


# Processes


@pytest.mark.parametrize("jobs", [0, -1])
def test_jobs_are_at_least_one(jobs: int) -> None:
    """Said in the words of the flag."""
    with pytest.raises(ConfigError, match="--jobs must be at least 1"):
        list(run_cells(Cells(grid(), None, is_resuming=False), fake, jobs))


def test_processes_change_nothing(tmp_path: Path) -> None:
    """Two processes write the very bytes that one does."""
    workload = tmp_path / "load.jsonl"
    records.write(workload, load(25, seed=2))
    texts = []
    for jobs in (1, 2):
        path = tmp_path / f"{jobs}.json"
        cells = Cells(grid(str(workload), "giusto", seeds=2), path, is_resuming=False)
        assert sorted(at for at, _ in run_cells(cells, build.simulate, jobs)) == [0, 1]
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_run_raises_is_raised_and_what_was_done_is_kept(tmp_path: Path, jobs: int) -> None:
    """An error ends the sweep as itself, in this process or another."""
    workload = tmp_path / "load.jsonl"
    records.write(workload, load(5))
    path = tmp_path / "out.json"
    good, bad = grid(str(workload), "fcfs", seeds=2)
    bad = replace(bad, settings=replace(bad.settings, policy_options={"bogus": "1"}))
    with pytest.raises(ConfigError, match="policy fcfs has no option 'bogus'"):
        list(run_cells(Cells([good, bad], path, is_resuming=True), build.simulate, jobs))
    if jobs == 1:
        assert Cells([good, bad], path, is_resuming=True).missing == [1]
