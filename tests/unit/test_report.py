"""The page that results become: its structure, its numbers, and what it says of missing ones."""

from __future__ import annotations

import html
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from giusto.bench import plots, results
from giusto.bench.drive import Run
from giusto.bench.pages.cases import Chapter, case, chapters, load
from giusto.bench.pages.intervals import difference, estimate, student
from giusto.bench.pages.markup import element, table
from giusto.bench.pages.measures import BY_RATE
from giusto.bench.plots import plot, rate_name, timeline_cases
from giusto.bench.report import report
from giusto.bench.report_command import report as report_command
from giusto.core.errors import ConfigError
from giusto.core.request import FinishReason
from giusto.core.slo import BestEffort, Deadline, Streaming
from giusto.metrics.records import Record

JSON = dict[str, Any]
SECTIONS = (
    "What was run",
    "By request rate",
    "By class",
    "Latencies",
    "Course of the runs",
    "Numbers",
)
SLOS = {"chat": Streaming(1.0, 0.1), "tool": Deadline(3.0), "batch": BestEffort()}


def records(rate: float, seed: int, speed: float, count: int = 24) -> list[Record]:
    """Requests whose wait shrinks with `speed`, which is what tells policies apart here."""
    arrivals, waits = random.Random(f"{rate} {seed}"), random.Random(f"{seed} {speed}")
    now, rows = 0.0, []
    for index in range(count):
        now += arrivals.expovariate(rate)
        name = arrivals.choice(list(SLOS))
        start = now + waits.expovariate(speed)
        times = tuple(start + 0.05 * k for k in range(1, 6))
        answered = waits.random() < 0.9
        rows.append(
            Record(
                str(index),
                str(index),
                name,
                SLOS[name],
                now,
                now,
                10,
                times if answered else (),
                times[-1] if answered else now,
                FinishReason.STOP if answered else None,
                refused=None if answered else "shed",
                admitted=start if answered else None,
            )
        )
    return rows


def result(policy: str, rate: float | str | None, seed: int, **about: Any) -> JSON:
    speed = {"fcfs": 0.5, "edf": 1.0}.get(policy, 4.0)
    said = {
        "backend": "giusto",
        "policy": policy,
        "model_id": "m",
        "workload": "mixed",
        "request_rate": rate,
        "burstiness": 1.0,
        "seed": seed,
    }
    pace = rate if isinstance(rate, float) else 1.0
    return results.result(Run(records(pace, seed, speed)), said | about)


#: As vLLM's `bench serve --save-result` writes one, shortened.
VLLM: JSON = {
    "backend": "vllm",
    "model_id": "m",
    "num_prompts": 100,
    "request_rate": "inf",
    "burstiness": 1.0,
    "duration": 50.0,
    "completed": 100,
    "request_throughput": 2.0,
    "request_goodput": None,
    "output_throughput": 18.0,
    "median_ttft_ms": 90.0,
    "p99_ttft_ms": 200.0,
    "median_tpot_ms": 30.0,
    "p99_tpot_ms": 40.0,
    "p99_itl_ms": 60.0,
}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not drawn where only the page around them is looked at."""
    monkeypatch.setattr(plots, "png", lambda draw: b"\x89PNG")


def saved(folder: Path, *runs: JSON, name: str = "run.json") -> Path:
    path = folder / name
    results.write(path, runs)
    return path


def written(page: Path) -> tuple[str, list[str], int]:
    """A page's text without markup, its section titles, and how many pictures it holds."""
    content = page.read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", "|", content, flags=re.DOTALL))
    titles = re.findall(r"<h3>(.*?)</h3>", content)
    return re.sub(r"[\s|]+", " ", text), titles, content.count('src="data:image/png;base64,')


def chapter_of(*runs: JSON) -> Chapter:
    (found,) = chapters([case(Path(f"{index}.json"), run) for index, run in enumerate(runs)])
    return found


# The page


def test_one_run_makes_a_page(tmp_path: Path) -> None:
    """All sections, a figure each but two by class, and the same PNG files beside the page."""
    page = report([saved(tmp_path, result("fcfs", 1.0, 1))], tmp_path / "out" / "report.html")
    text, titles, pictures = written(page)
    assert tuple(titles) == SECTIONS
    assert "Not recorded" not in text
    files = sorted((tmp_path / "out" / "report-plots").iterdir())
    assert (pictures, len(files)) == (5, 5)
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
    assert all(f.name.startswith("1-mixed-") for f in files)


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    """No link leaves the page, and the same files give the same bytes."""
    path = saved(tmp_path, result("fcfs", 1.0, 1))
    one = report([path], tmp_path / "a.html", title="Mine & yours").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', one)
    assert "url(" not in one and "<script" not in one
    assert "<title>Mine &amp; yours</title>" in one
    assert one == report([path], tmp_path / "a.html", title="Mine & yours").read_text()


def test_policies_rates_and_seeds(tmp_path: Path) -> None:
    """A figure per rate where there are several; the highest that all ran at is open."""
    runs = [result(p, r, s) for p in ("fcfs", "edf") for r in (1.0, 2.0) for s in (1, 2)]
    runs += [result("edf", 3.0, 1)]
    page = report([saved(tmp_path, *runs)], tmp_path / "report.html")
    text, _, pictures = written(page)
    assert pictures == 1 + 3 * (2 + 1 + 1)
    opened = re.findall(r"<details open><summary>(.*?)<", page.read_text())
    assert [name for name in opened if name.endswith("/s")] == ["2 requests/s"] * 4
    assert "Differences in attainment" in text
    assert "Not all cells have the same seeds" in text


@pytest.mark.usefixtures("undrawn")
def test_different_settings_are_different_chapters(tmp_path: Path) -> None:
    """Another workload, profile or noise is another chapter; a table of contents leads to them."""
    page = report(
        [
            saved(tmp_path, result("fcfs", 1.0, 1), name="a.json"),
            saved(tmp_path, result("fcfs", 1.0, 1, workload="azure:x.csv"), name="b.json"),
            saved(tmp_path, result("fcfs", 1.0, 1, profile="a100"), name="c.json"),
            saved(tmp_path, result("fcfs", 1.0, 1, noise=0.2), name="d.json"),
        ],
        tmp_path / "report.html",
    )
    content = page.read_text()
    noisy = "noise of step times"
    titles = [f"mixed · {noisy} -", "azure:x.csv", "mixed on a100", f"mixed · {noisy} 0.2"]
    assert titles == re.findall(r"<h2[^>]*>(.*?)</h2>", content)
    assert [f"#chapter-{k}" for k in (1, 2, 3, 4)] == re.findall(r'<a href="(.*?)"', content)
    assert written(page)[1] == [*SECTIONS] * 4


def test_a_result_of_vllm_says_what_it_lacks(tmp_path: Path) -> None:
    """vLLM's own file: its figures in the table, a note where a section has nothing to show."""
    path = tmp_path / "vllm.json"
    path.write_text(json.dumps(VLLM))
    text, titles, pictures = written(report([path], tmp_path / "report.html"))
    assert tuple(titles) == SECTIONS
    assert pictures == 0
    assert "workload not recorded" in text
    assert "Not recorded by vllm: Attainment, Service gain, Goodput, Token goodput." in text
    for lacking in ("figures by class", "distributions", "timeline"):
        assert f"Not recorded by vllm: {lacking}." in text
    assert "TTFT median, ms" in text


def test_older_files_beside_newer_ones(tmp_path: Path) -> None:
    """A run without distributions is named where they are drawn, and drawn where it can be."""
    old = result("fcfs", 1.0, 1)
    del old["distributions"], old["timeline"]
    runs = [old, result("fcfs", 1.0, 2), result("edf", 1.0, 1)]
    page = report([saved(tmp_path, *runs)], tmp_path / "report.html")
    text, _, pictures = written(page)
    assert "Not recorded by fcfs (1 of 2 runs): distributions." in text
    assert "Not recorded by fcfs (1 of 2 runs): timeline." in text
    assert pictures == 5


@pytest.mark.usefixtures("undrawn")
def test_vllm_beside_giusto(tmp_path: Path) -> None:
    """With the workload said (`--metadata`, as text) it joins the chapter as a line of its own."""
    vllm = VLLM | {"workload": "mixed", "request_rate": 1.0, "seed": "1", "policy": "vllm-fcfs"}
    chapter = chapter_of(result("fcfs", 1.0, 1), vllm)
    assert [line.label for line in chapter.lines] == ["fcfs", "vllm-fcfs"]
    assert chapter.by_seed(chapter.lines[1], 1.0, "median_ttft_ms") == {"1": 90.0}
    page = report([saved(tmp_path, result("fcfs", 1.0, 1), vllm)], tmp_path / "report.html")
    assert "Not recorded by vllm-fcfs: timeline." in written(page)[0]


@pytest.mark.usefixtures("undrawn")
def test_doubts_are_said(tmp_path: Path) -> None:
    """Two calibrations, a break and a late client stand above the figures."""
    runs = [
        result("fcfs", 1.0, 1, calibration={"chat": 1}) | {"is_interrupted": True},
        result("edf", 1.0, 1, calibration={"chat": 2}) | {"client_lag_p99_ms": 500.0},
    ]
    text, _, _ = written(report([saved(tmp_path, *runs)], tmp_path / "report.html"))
    assert "2 calibrations" in text
    assert "Runs that were interrupted: in run.json." in text
    assert "Runs that had a late client: in run.json." in text
    assert "rests on estimated output lengths" in text


@pytest.mark.usefixtures("undrawn")
def test_a_clear_difference_is_marked(tmp_path: Path) -> None:
    """Three seeds with a constant lead: bold for the best, a mark for the other."""
    runs = [
        result(policy, 1.0, seed) | {"attainment": base + 0.01 * seed}
        for policy, base in (("fcfs", 0.5), ("edf", 0.9))
        for seed in (1, 2, 3)
    ]
    content = report([saved(tmp_path, *runs)], tmp_path / "report.html").read_text()
    assert '<span class="worse">52.0 ± 2.5 ▾</span>' in content
    assert "<strong>92.0 ± 2.5</strong>" in content
    assert "<strong>+40.0 ± 0.0</strong>" in content
    assert "<strong>−40.0 ± 0.0</strong>" in content


def test_names_are_escaped(tmp_path: Path) -> None:
    """A policy that looks like markup, or like mathematics, stays text."""
    runs = [result("<b>x</b>", 1.0, 1), result("$a$b_{", 1.0, 1)]
    content = report([saved(tmp_path, *runs)], tmp_path / "report.html").read_text()
    assert "<b>" not in content
    assert "&lt;b&gt;x&lt;/b&gt;" in content
    assert element("p", "<") == "<p>&lt;</p>"
    assert table(["a"], [["&"]]).count("&amp;") == 1


def test_rates_without_a_number(tmp_path: Path) -> None:
    """Recorded times and all at once have no place on an axis; they are told and drawn as bars."""
    runs = [result("fcfs", None, 1), result("fcfs", "inf", 1)]
    chapter = chapter_of(*runs)
    assert chapter.rates == (math.inf, None)
    text, _, pictures = written(report([saved(tmp_path, *runs)], tmp_path / "report.html"))
    assert pictures == 1 + 2 * 4
    assert "all at once" in text
    assert "recorded times" in text
    assert rate_name(2.5) == "2.5 requests/s"


# Files


def test_files_are_strict_json(tmp_path: Path) -> None:
    """What is read is what was written, infinities as null; a single run's keys are on top too."""
    run = result("fcfs", 1.0, 1) | {"p99_ttft_ms": math.inf}
    path = saved(tmp_path, run)
    content = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert content.pop("runs") == [content]
    assert content == run | {"p99_ttft_ms": None}
    several = saved(tmp_path, run, result("edf", 1.0, 1))
    assert json.loads(several.read_text()).keys() == {"runs"}
    assert [found["policy"] for found in results.read(several)] == ["fcfs", "edf"]
    assert results.read(saved(tmp_path)) == []


def test_all_forms_of_files(tmp_path: Path) -> None:
    """Runs of a file, a flat one, one per line; what is given twice counts once."""
    lines = tmp_path / "lines.json"
    lines.write_text("\n".join(json.dumps(VLLM | {"seed": k}) for k in (1, 2)))
    single = saved(tmp_path, result("fcfs", 1.0, 1))
    found = load([lines, single, single])
    assert [(c.file.name, c.seed) for c in found] == [
        ("lines.json", "1"),
        ("lines.json", "2"),
        ("run.json", "1"),
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not JSON", "it is not JSON"),
        ("", "holds no run"),
        ('{"runs": []}', "holds no run"),
        ('{"runs": 3}', "neither a run nor `runs`"),
        ("3", "neither a run nor `runs`"),
        ("[3]", "neither attainment nor request_throughput"),
        ('{"chat": {"ttft_ms": 5}}', "neither attainment nor request_throughput"),
        ('{"attainment": "high"}', "attainment is no number"),
        ('{"attainment": 0.5, "by_class": []}', "by_class is no object"),
        ('{"attainment": 0.5, "by_class": {"a": {"offered": "x"}}}', "offered is no number"),
        ('{"attainment": 0.5, "request_rate": "fast"}', "request_rate is 'fast'"),
        ('{"attainment": 0.5, "request_rate": -1}', "request_rate is -1"),
        ('{"attainment": 0.5, "timeline": {}}', "distributions or timeline"),
        ('{"attainment": 0.5, "distributions": {"a": {}}}', "distributions or timeline"),
        ('{"attainment": 0.5, "distributions": 7}', "distributions or timeline"),
    ],
)
def test_no_result_is_named(tmp_path: Path, content: str, reason: str) -> None:
    """A file that is no result is named, with what is wrong with it."""
    path = tmp_path / "odd.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        load([path])
    assert str(path) in str(caught.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """A missing file, a folder, an image, nothing at all; a page that cannot be written."""
    image = tmp_path / "x.png"
    image.write_bytes(b"\x89PNG\xff")
    for path in (tmp_path / "none.json", tmp_path, image):
        with pytest.raises(ConfigError, match=f"cannot read {re.escape(str(path))}"):
            load([path])
    with pytest.raises(ConfigError, match="at least one result file"):
        load([])
    with pytest.raises(ConfigError, match="cannot write"):
        report([saved(tmp_path, result("fcfs", 1.0, 1))], image / "report.html")


# Chapters


def test_labels_tell_lines_apart() -> None:
    """The policy alone while it is enough, else what differs beside it."""
    chapter = chapter_of(
        result("edf", 1.0, 1),
        result("fcfs", 1.0, 1),
        result("fcfs", 1.0, 1, backend="simulator"),
    )
    assert [line.label for line in chapter.lines] == ["edf", "fcfs · giusto", "fcfs · simulator"]
    assert len({line.colour for line in chapter.lines}) == 3


def test_a_policy_keeps_its_colour() -> None:
    """The same name has the same colour in every chapter."""
    runs = [result("edf", 1.0, 1), result("fcfs", 1.0, 1), result("fcfs", 1.0, 1, workload="x")]
    first, second = chapters([case(Path("a"), run) for run in runs])
    assert second.lines == first.lines[1:]


def test_repeated_runs_of_a_seed_are_one_value() -> None:
    """Repeats are averaged; runs that do not tell their seed are values of their own."""
    runs = [result("fcfs", 1.0, 1) | {"attainment": share} for share in (0.4, 0.6)]
    runs += [result("fcfs", 1.0, 1) | {"attainment": share, "seed": None} for share in (0.1, 0.2)]
    chapter = chapter_of(*runs)
    values = chapter.by_seed(chapter.lines[0], 1.0, "attainment")
    assert values["1"] == 0.5
    assert sorted(values.values()) == [0.1, 0.2, 0.5]


def test_null_is_infinite_only_over_offered() -> None:
    """A p95 that is null was not answered; an attainment that is null was not there."""
    run = result("fcfs", 1.0, 1) | {"p95_ttft_offered_ms": None, "attainment": None}
    shown = case(Path("a"), run)
    assert shown.value("p95_ttft_offered_ms") == math.inf
    assert shown.value("attainment") is None
    assert case(Path("a"), run | {"offered": 0}).value("p95_ttft_offered_ms") is None


def test_timelines_are_of_one_seed() -> None:
    """The lowest seed that all lines have, by number; else each line's lowest."""
    runs = [result("fcfs", 1.0, seed) for seed in (2, 9, 10)]
    chapter = chapter_of(*runs, result("edf", 1.0, 10), result("edf", 1.0, 9))
    assert {c.seed for c in timeline_cases(chapter, 1.0).values()} == {"9"}
    chapter = chapter_of(*runs, result("edf", 1.0, 11))
    assert [c.seed for c in timeline_cases(chapter, 1.0).values()] == ["2", "11"]


# Intervals


def test_intervals_by_hand() -> None:
    """Student's interval of 1, 2, 3, the range, and none of one value or an infinite one."""
    made = estimate([1.0, 2.0, 3.0])
    assert (made.mean, made.low, made.high, made.count) == (2.0, 1.0, 3.0, 3)
    assert made.half == pytest.approx(4.303 / math.sqrt(3))
    assert estimate([5.0]).half is None
    assert estimate([1.0, math.inf]) == estimate([math.inf, 1.0])
    assert estimate([1.0, math.inf]).half is None


def test_differences_are_paired_where_they_can_be() -> None:
    """Shared seeds cancel what seeds have in common; without them the interval is Welch's."""
    ours = {"1": 1.0, "2": 5.0, "3": 9.0}
    paired = difference(ours, {"1": 0.0, "2": 4.0, "3": 8.1})
    assert paired is not None
    assert paired.is_paired
    assert paired.is_clear
    welch = difference(ours, {"4": 0.0, "5": 4.0, "6": 8.1})
    assert welch is not None
    assert not welch.is_paired
    assert not welch.is_clear
    assert welch.half == pytest.approx(2.776 * math.sqrt((16 + 16.4033) / 3), rel=0.15)
    assert difference(ours, {}) is None
    assert difference(ours, {"1": math.inf}) is None


def test_one_seed_shows_no_clear_difference() -> None:
    """There is a difference of two single values, and no interval to hold it against."""
    single = difference({"1": 0.9}, {"1": 0.1})
    assert single is not None
    assert (single.mean, single.half, single.is_clear) == (pytest.approx(0.8), None, False)


def test_student_falls_towards_the_normal() -> None:
    """The quantile falls with every degree of freedom, across the end of the table too."""
    values = [student(k) for k in range(1, 200)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(1.972, abs=0.003)
    assert student(2.9) == student(2)


# Plots of one run, and the command


def test_plots_of_one_run(tmp_path: Path) -> None:
    """`giusto bench --plots`: four files, for a run and for one that reached nothing."""
    rows = records(1.0, 1, 1.0)
    run = results.result(Run(rows), {"policy": "fcfs", "request_rate": 1.0})
    names = ["attainment.png", "gain.png", "latency.png", "timeline.png"]
    assert [f.name for f in plot(run, rows, tmp_path / "plots")] == names
    empty = results.result(Run(), {"policy": None, "model_id": "m", "request_rate": 1.0})
    assert len(plot(empty, [], tmp_path / "empty")) == 4


def test_a_page_of_an_empty_run(tmp_path: Path) -> None:
    """A run in which nothing arrived is a page all the same."""
    empty = results.result(Run(), {"policy": None, "request_rate": 1.0})
    text, titles, _ = written(report([saved(tmp_path, empty)], tmp_path / "report.html"))
    assert tuple(titles) == SECTIONS
    assert all(measure.label in text for measure in BY_RATE[2:])


def invoke(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(report_command)
    outcome = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "150"})
    return outcome.exit_code, outcome.output


@pytest.mark.usefixtures("undrawn")
def test_command(tmp_path: Path) -> None:
    """It prints where the page is, or one sentence that says what is wrong."""
    path, page = saved(tmp_path, result("fcfs", 1.0, 1)), tmp_path / "p.html"
    assert invoke(str(path), "--out", str(page), "--title", "T") == (0, f"{page}\n")
    code, output = invoke(str(tmp_path / "none.json"), "--out", str(page))
    assert code == 2
    assert output.startswith("giusto report: cannot read")


WITHOUT = """
import sys
for missing in {missing}:
    sys.modules[missing] = None
import typer
from giusto.bench.report_command import report
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(report)
app()
"""


@pytest.mark.parametrize(
    ("missing", "code", "said"),
    [
        (("matplotlib",), 2, "pip install 'giusto[bench]'"),
        (("httpx", "torch", "fastapi"), 0, "p.html"),
    ],
)
def test_what_it_needs(tmp_path: Path, missing: tuple[str, ...], code: int, said: str) -> None:
    """matplotlib, which it asks for by name; neither the HTTP client nor the server."""
    path, script = saved(tmp_path, VLLM), WITHOUT.format(missing=missing)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(path), "--out", str(tmp_path / "p.html")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"COLUMNS": "150", "PATH": "", "HOME": str(tmp_path)},
    )
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done.stderr
