"""The sections of a chapter: what was run, figures, and tables. Nothing missing goes unsaid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from giusto.bench import plots
from giusto.bench.pages.cases import ALL, LINE_KEYS, Case, Chapter, Line, Rate
from giusto.bench.pages.intervals import difference, estimate
from giusto.bench.pages.markup import Content, Markup, element, folded, note, table
from giusto.bench.pages.measures import (
    ANSWERED,
    BY_CLASS,
    BY_RATE,
    COMPARED,
    GAIN,
    OFFERED,
    Measure,
)
from giusto.bench.plots import rate_name
from giusto.bench.table import LAG_WARNING_MS

#: Draws a figure under a name and gives it back as markup with a caption.
Gallery = Callable[[str, plots.Draw, str], Markup]

MARK = "▾"
NO_RUN = "no run at this rate"


def sections(chapter: Chapter, show: Gallery) -> list[Markup]:
    """All sections of a chapter, in the order of the page."""
    made = {
        "What was run": what_was_run(chapter),
        "By request rate": by_rate(chapter, show),
        "By class": by_class(chapter, show),
        "Latencies": latencies(chapter, show),
        "Course of the runs": courses(chapter, show),
        "Numbers": numbers(chapter),
    }
    return [element("section", [element("h3", title), *content]) for title, content in made.items()]


def what_was_run(chapter: Chapter) -> list[Markup]:
    """Settings that all runs share, and a row per line and rate."""
    keys = [key for key in LINE_KEYS if key != "policy"]
    settings = {key: {_setting(case, key) for case in chapter.cases} for key in keys}
    shared = {LINE_KEYS[key]: min(found) for key, found in settings.items() if len(found) == 1}
    facts = [
        part
        for name, value in {**chapter.about, **shared}.items()
        if value
        for part in (element("dt", name), element("dd", value))
    ]
    telling = [key for key in keys if len(settings[key]) > 1]
    rows = [
        [
            line.label,
            *(_setting(cell[0], key) or "-" for key in telling),
            rate_name(rate),
            _seeds(cell),
            f"{len(cell)}",
            _range([c.value("offered") for c in cell]),
            _range([c.value("duration") for c in cell]),
            ", ".join(sorted({c.file.name for c in cell})),
        ]
        for (line, rate), cell in chapter.cells.items()
    ]
    headings = ["policy", *(LINE_KEYS[key] for key in telling), "rate", "seeds", "runs"]
    headings += ["offered per run", "duration, s", "files"]
    parts = [element("dl", facts)] if facts else []
    return [*parts, table(headings, rows), *map(note, _doubts(chapter))]


def by_rate(chapter: Chapter, show: Gallery) -> list[Markup]:
    """Attainment, gain and goodput over the rate."""
    parts = _missing_figures(chapter, BY_RATE)
    if any(c.value(m.key) is not None for c in chapter.cases for m in BY_RATE):
        caption = (
            "Means over seeds, side by side around their rate; bars span lowest and highest seed."
        )
        if 1 < sum(map(_is_finite, chapter.rates)) < len(chapter.rates):
            caption += " Runs without a rate of their own are in the tables only."
        parts.append(show("by-rate", partial(plots.by_rate, chapter), caption))
    return parts


def by_class(chapter: Chapter, show: Gallery) -> list[Markup]:
    """Attainment and gain by class, a figure each per rate."""

    def has(case: Case) -> bool:
        return "by_class" in case.run

    def at(rate: Rate) -> list[Markup]:
        return [
            show(
                f"{measure.key}-by-class-{_slug(rate)}",
                partial(plots.by_class, chapter, rate, measure),
                f"{measure.label} by class at {rate_name(rate)}; bars span the seeds."
                + (" Best effort earns none." if measure == GAIN else ""),
            )
            for measure in BY_CLASS
        ]

    return [*_missing(chapter, "figures by class", has), *_per_rate(chapter, at, has)]


def latencies(chapter: Chapter, show: Gallery) -> list[Markup]:
    """Cumulative distributions of TTFT, TPOT and E2E, a figure per rate."""
    caption = (
        "Share of the requests offered that had at most so long a latency, mean over seeds; a "
        "curve that ends below 1 leaves out what was refused or never answered."
    )

    def at(rate: Rate) -> list[Markup]:
        name = f"latencies-{_slug(rate)}"
        return [show(name, partial(plots.latencies, chapter, rate), caption)]

    return _recorded(chapter, "distributions", at)


def courses(chapter: Chapter, show: Gallery) -> list[Markup]:
    """How one run of each line went over time, a figure per rate."""

    def at(rate: Rate) -> list[Markup]:
        seeds = {case.seed for case in plots.timeline_cases(chapter, rate).values()}
        named = ", ".join(sorted(seed or "not recorded" for seed in seeds))
        caption = (
            f"One run of each, seed {named}. In colour: running, and in time by arrival; grey: "
            "waiting, and not in time."
        )
        return [show(f"courses-{_slug(rate)}", partial(plots.courses, chapter, rate), caption)]

    return _recorded(chapter, "timeline", at)


def numbers(chapter: Chapter) -> list[Markup]:
    """Tables per rate: figures over what was offered and answered, by class, and differences."""
    legend = element(
        "p",
        "Means over seeds ± half the 95 % interval (Student); one seed has none. Bold: the best of "
        f"a column. {MARK}: worse than the best by more than the 95 % interval of the difference, "
        "paired by seed where seeds are shared; what has no mark may be as good. ∞: not answered.",
    )
    parts = [legend, *_missing_figures(chapter, (*OFFERED, *ANSWERED))]
    for rate in chapter.rates:
        tables = [
            *_figures(chapter, rate, "Over what was offered", OFFERED),
            *_figures(chapter, rate, "Throughput, and latencies of what was answered", ANSWERED),
            *(_classes(chapter, rate, measure) for measure in BY_CLASS if chapter.classes),
            *(_differences(chapter, rate, m) for m in COMPARED if _compares(chapter, rate, m)),
        ]
        parts.append(folded(rate_name(rate), tables, is_open=rate == chapter.chosen_rate))
    return parts


def _figures(chapter: Chapter, rate: Rate, title: str, measures: Sequence[Measure]) -> list[Markup]:
    kept = [m for m in measures if any(c.value(m.key) is not None for c in chapter.cases)]
    if not kept:
        return []
    lines = chapter.lines_at(rate)
    columns = [_column(chapter, rate, measure, ALL) for measure in kept]
    rows = [[line.label, *(column[line] for column in columns)] for line in lines]
    return [element("h4", title), table(["", *(m.title for m in kept)], rows)]


def _classes(chapter: Chapter, rate: Rate, measure: Measure) -> Markup:
    lines = chapter.lines_at(rate)
    columns = [_column(chapter, rate, measure, name) for name in chapter.classes]
    rows = [[line.label, *(column[line] for column in columns)] for line in lines]
    title = element("h4", f"{measure.title}, by class")
    return element("div", [title, table(["", *chapter.classes], rows)])


def _column(
    chapter: Chapter, rate: Rate, measure: Measure, service_class: str
) -> dict[Line, Markup]:
    """Cells of one figure: mean, interval, and how it stands to the best of the column."""
    values = {
        line: chapter.by_seed(line, rate, measure.key, service_class)
        for line in chapter.lines_at(rate)
    }
    means = {line: estimate(list(v.values())).mean for line, v in values.items() if v}
    sign = -1 if measure.is_less_better else 1
    best = max(means, key=lambda line: sign * means[line], default=None)
    cells = {}
    for line, by_seed in values.items():
        if not by_seed or best is None:
            cells[line] = element("span", "-")
            continue
        made = estimate(list(by_seed.values()))
        text = measure.show(made.mean)
        if made.half is not None:
            text += f" ± {measure.show(made.half)}"
        gap = difference(by_seed, values[best])
        if gap is not None and gap.is_clear:
            cells[line] = element("span", f"{text} {MARK}", class_="worse")
        else:
            is_best = len(means) > 1 and means[line] == means[best]
            cells[line] = element("strong" if is_best else "span", text)
    return cells


def _compares(chapter: Chapter, rate: Rate, measure: Measure) -> bool:
    """Whether two lines or more have the figure at this rate."""
    lines = chapter.lines_at(rate)
    return sum(bool(chapter.by_seed(line, rate, measure.key)) for line in lines) > 1


def _differences(chapter: Chapter, rate: Rate, measure: Measure) -> Markup:
    """A matrix of row minus column; bold where larger than its interval."""
    lines = chapter.lines_at(rate)
    values = {line: chapter.by_seed(line, rate, measure.key) for line in lines}

    def cell(row: Line, column: Line) -> Content:
        gap = None if row == column else difference(values[row], values[column])
        if gap is None:
            return "" if row == column else "-"
        text = f"{gap.mean * measure.scale:+.1f}".replace("-", "−")
        if gap.half is not None:
            text += f" ± {gap.half * measure.scale:.1f}"
        text += "" if gap.is_paired else " *"
        return [element("strong" if gap.is_clear else "span", text)]

    rows = [[row.label, *(cell(row, column) for column in lines)] for row in lines]
    content = [
        table([f"{measure.label}, points: row − column", *(line.label for line in lines)], rows),
        element("p", "Bold: larger than its 95 % interval. *: seeds are not shared, not paired."),
    ]
    title = f"Differences in {measure.label.lower()}"
    return folded(title, content, is_open=len(lines) <= 3)


def _per_rate(
    chapter: Chapter, at: Callable[[Rate], list[Markup]], has: Callable[[Case], bool]
) -> list[Markup]:
    """What `at` makes of each rate, the chosen one open; rates without anything left out."""
    parts = []
    chosen = chapter.chosen_rate
    for rate in chapter.rates:
        if any(has(c) for line in chapter.lines_at(rate) for c in chapter.cells[line, rate]):
            parts.append(folded(rate_name(rate), at(rate), is_open=rate == chosen))
    return parts


def _recorded(chapter: Chapter, key: str, at: Callable[[Rate], list[Markup]]) -> list[Markup]:
    has = partial(_has, key)
    return [*_missing(chapter, key, has), *_per_rate(chapter, at, has)]


def _missing_figures(chapter: Chapter, measures: Iterable[Measure]) -> list[Markup]:
    """A note for each group of figures that the same runs lack."""
    lacking: dict[str, list[str]] = {}
    for measure in measures:
        who = _who_lacks(chapter, partial(_has, measure.key))
        if who and measure.key != "request_goodput":
            lacking.setdefault(who, []).append(measure.label)
    return [note(f"Not recorded by {who}: {', '.join(names)}.") for who, names in lacking.items()]


def _missing(chapter: Chapter, what: str, has: Callable[[Case], bool]) -> list[Markup]:
    who = _who_lacks(chapter, has)
    return [note(f"Not recorded by {who}: {what}.")] if who else []


def _who_lacks(chapter: Chapter, has: Callable[[Case], bool]) -> str:
    """The lines whose runs lack something, and how many of their runs; empty if none does."""
    said = []
    for line in chapter.lines:
        cases = [c for (owner, _), cell in chapter.cells.items() if owner == line for c in cell]
        lacking = sum(not has(case) for case in cases)
        if lacking:
            part = "" if lacking == len(cases) else f" ({lacking} of {len(cases)} runs)"
            said.append(f"{line.label}{part}")
    return ", ".join(said)


def _doubts(chapter: Chapter) -> list[str]:
    """What makes the runs of a chapter less than comparable."""
    cases = chapter.cases
    doubts = []
    promises = {str(promise) for c in cases if (promise := c.run.get("calibration"))}
    if len(promises) > 1:
        doubts.append(
            f"{len(promises)} calibrations: these runs were judged by different promises, so their "
            "figures do not compare. Give all of them one --calibration file."
        )
    for what, files in (
        ("were interrupted", {c.file.name for c in cases if c.run.get("is_interrupted")}),
        ("had a late client", {c.file.name for c in cases if _lag(c) > LAG_WARNING_MS}),
    ):
        if files:
            doubts.append(f"Runs that {what}: in {', '.join(sorted(files))}.")
    estimated = max((c.value("service_gain_estimated_share") or 0.0 for c in cases), default=0.0)
    if estimated > 0:
        doubts.append(
            f"Up to {estimated:.1%} of a run's possible gain rests on estimated output lengths."
        )
    seeds = {frozenset(case.seed for case in cell) for cell in chapter.cells.values()}
    if len(chapter.lines) > 1 and len(seeds) > 1:
        doubts.append("Not all cells have the same seeds: differences are paired where shared.")
    return doubts


def _has(key: str, case: Case) -> bool:
    return key in case.run


def _lag(case: Case) -> float:
    return case.value("client_lag_p99_ms") or 0.0


def _setting(case: Case, key: str) -> str:
    """A setting of a line; empty where it is not recorded."""
    return dict(zip(LINE_KEYS, case.line, strict=True))[key] or ""


def _seeds(cell: Sequence[Case]) -> str:
    named = {case.seed for case in cell}
    known = sorted((seed for seed in named if seed is not None), key=plots.seed_order)
    return ", ".join([*known, *(["not recorded"] if None in named else [])])


def _range(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "not recorded"
    low, high = f"{min(known):,.0f}", f"{max(known):,.0f}"
    return low if low == high else f"{low} to {high}"


def _is_finite(rate: Rate) -> bool:
    return rate is not None and math.isfinite(rate)


def _slug(rate: Rate) -> str:
    """A rate as part of a file name."""
    if rate is None:
        return "recorded-times"
    return "all-at-once" if math.isinf(rate) else f"{rate:g}rps"
