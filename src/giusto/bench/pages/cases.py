"""Result files into chapters: what may be compared stands together, nothing else does."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from giusto.bench.pages.measures import NUMBERS
from giusto.bench.results import Result
from giusto.core.errors import ConfigError
from giusto.metrics.distributions import COURSES, QUANTILES, STEPS

ALL = "all"

#: Runs that differ in one of these were not asked for the same: they never share a chapter.
CHAPTER_KEYS = {
    "workload": "workload",
    "profile": "profile",
    "replicas": "replicas",
    "router": "router",
    "slo_scale": "SLO scale",
    "arrivals": "arrivals",
    "burstiness": "burstiness",
    "duration_asked": "seconds of arrivals",
    "num_prompts_asked": "number of arrivals",
    "answers": "law of answers",
    "max_num_seqs": "sequences at once",
    "max_num_batched_tokens": "tokens of a step",
    "prefix_caching": "prefix caching",
    "lookahead": "lookahead",
    "model_error": "error of the policy's model",
    "noise": "noise of step times",
    "speed": "speed of the machine",
    "num_blocks": "blocks of KV memory",
    "swap_space": "GiB to swap to",
    "overlap": "overlap of swapping",
    "classes": "terms of classes",
}

#: Runs of a chapter that differ in one of these never share a line.
LINE_KEYS = {
    "policy": "policy",
    "policy_options": "options",
    "backend": "back-end",
    "model_id": "model",
}

#: A result has at least one of these.
FIGURES = ("attainment", "request_throughput")

#: Figures over offered requests, in which null stands for infinity.
ENDLESS = ("p95_ttft_offered_ms", "p95_e2el_offered_ms")

#: Requests per second; inf is all at once, None the workload's own times.
Rate = float | None

Identity = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One run: of a policy, at a rate, with a seed (None: the file does not say)."""

    file: Path
    run: Result
    rate: Rate
    seed: str | None
    chapter: Identity
    line: Identity

    def value(self, key: str, service_class: str = ALL) -> float | None:
        """A figure; None where it is not recorded or there was nothing to measure."""
        row = self.run if service_class == ALL else self.classes.get(service_class, {})
        value = row.get(key)
        if value is None and key in ENDLESS and key in row and row.get("offered"):
            return math.inf
        return None if value is None or not math.isfinite(value) else float(value)

    @property
    def classes(self) -> Mapping[str, Result]:
        """Figures by service class; empty where they are not recorded."""
        by_class: Mapping[str, Result] = self.run.get("by_class", {})
        return {name: row for name, row in by_class.items() if name != ALL}


@dataclass(frozen=True, slots=True)
class Line:
    """What is drawn in one colour: a policy, or whatever else tells runs apart."""

    label: str
    colour: int


@dataclass(frozen=True, slots=True)
class Chapter:
    """Runs of one workload under one setting; `cells` has them by line and rate."""

    title: str
    about: Mapping[str, str]
    lines: tuple[Line, ...]
    rates: tuple[Rate, ...]
    cells: Mapping[tuple[Line, Rate], tuple[Case, ...]]

    @property
    def cases(self) -> list[Case]:
        return [case for cell in self.cells.values() for case in cell]

    @property
    def classes(self) -> list[str]:
        return sorted({name for case in self.cases for name in case.classes})

    @property
    def chosen_rate(self) -> Rate:
        """The highest rate that most lines ran at."""
        spread = [sum((line, rate) in self.cells for line in self.lines) for rate in self.rates]
        return max(zip(spread, range(len(spread)), self.rates, strict=True))[2]

    def lines_at(self, rate: Rate) -> list[Line]:
        return [line for line in self.lines if (line, rate) in self.cells]

    def recorded(self, line: Line, rate: Rate, key: str) -> list[Result]:
        """What the runs of a cell have under `key`."""
        return [c.run[key] for c in self.cells.get((line, rate), ()) if key in c.run]

    def by_seed(
        self, line: Line, rate: Rate, key: str, service_class: str = ALL
    ) -> dict[str, float]:
        """A figure by seed, repeated runs averaged; a run without a seed is one of its own."""
        found: dict[str, list[float]] = {}
        for index, case in enumerate(self.cells.get((line, rate), ())):
            value = case.value(key, service_class)
            if value is not None:
                name = f"{case.file} {index}" if case.seed is None else case.seed
                found.setdefault(name, []).append(value)
        return {seed: fmean(values) for seed, values in found.items()}


def load(paths: Iterable[Path]) -> list[Case]:
    """Read the runs of result files, each once however often it is given.

    A file is `{"runs": [...]}`, one flat result as vLLM's `bench serve` saves it, or one of either
    per line. Raises ConfigError that names the file and says why it is no result.
    """
    cases: dict[str, Case] = {}
    for path in paths:
        for run in _runs(path):
            cases.setdefault(json.dumps(run, sort_keys=True), case(path, run))
    if not cases:
        raise ConfigError("no results to report: give at least one result file")
    return list(cases.values())


def chapters(cases: Sequence[Case]) -> list[Chapter]:
    """Group runs into chapters, all in order of first appearance; rates ascend."""
    groups: dict[Identity, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.chapter, []).append(case)
    titles = _apart({identity: _title(identity) for identity in groups}, CHAPTER_KEYS.values())
    colours: dict[str, int] = {}
    return [
        _chapter(titles[identity], identity, group, colours) for identity, group in groups.items()
    ]


def _chapter(
    title: str, identity: Identity, cases: Sequence[Case], colours: dict[str, int]
) -> Chapter:
    labels = _apart({case.line: _name(case.line) for case in cases})
    lines = {
        key: Line(label, colours.setdefault(label, len(colours))) for key, label in labels.items()
    }
    cells: dict[tuple[Line, Rate], list[Case]] = {}
    for case in cases:
        cells.setdefault((lines[case.line], case.rate), []).append(case)
    rates = sorted({case.rate for case in cases}, key=lambda rate: (rate is None, rate or 0.0))
    return Chapter(
        title=title,
        about={
            name: text
            for name, text in zip(CHAPTER_KEYS.values(), identity, strict=True)
            if text is not None
        },
        lines=tuple(lines.values()),
        rates=tuple(rates),
        cells={key: tuple(cell) for key, cell in cells.items()},
    )


def _title(identity: Identity) -> str:
    said = dict(zip(CHAPTER_KEYS, identity, strict=True))
    name = said["workload"] or "workload not recorded"
    return f"{name} on {said['profile']}" if said["profile"] else name


def _name(identity: Identity) -> str:
    """The policy; a run that does not say it is known by its back-end."""
    said = dict(zip(LINE_KEYS, identity, strict=True))
    return said["policy"] or said["backend"] or "unknown"


def _apart(names: Mapping[Identity, str], keys: Iterable[str] = ()) -> dict[Identity, str]:
    """Each name, with as much of its identity beside it as tells equal names apart.

    `keys` name the parts of an identity where the parts do not speak for themselves.
    """
    heads = [f"{key} " for key in keys]
    labels = {}
    for identity, name in names.items():
        alike = [other for other in names if names[other] == name]
        parts = [
            f"{heads[at] if heads else ''}{part or '-'}"
            for at, part in enumerate(identity)
            if len({other[at] for other in alike}) > 1 and part != name
        ]
        labels[identity] = " · ".join([name, *parts])
    return labels


def _runs(path: Path) -> list[Result]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"cannot read {path}: {reason}") from error
    try:
        contents = [json.loads(text)]
    except ValueError:
        try:
            contents = [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError as error:
            raise ConfigError(f"{path} is no result file: it is not JSON ({error})") from error
    runs = []
    for content in contents:
        found = content.get("runs", [content]) if isinstance(content, dict) else content
        if not isinstance(found, list):
            raise ConfigError(f"{path} is no result file: it holds neither a run nor `runs`")
        runs += found
    if not runs:
        raise ConfigError(f"{path} holds no run: its benchmark goes on, or was cut short")
    return runs


def case(path: Path, run: Any) -> Case:
    """Check what the report relies on in a run of `path`; ConfigError names file and key."""
    if not isinstance(run, dict) or not any(key in run for key in FIGURES):
        wanted = " nor ".join(FIGURES)
        raise ConfigError(f"{path} is no result file: a run in it has neither {wanted}")
    by_class = run.get("by_class", {})
    if not isinstance(by_class, dict) or not all(isinstance(r, dict) for r in by_class.values()):
        raise ConfigError(f"{path}: by_class is no object of objects")
    for row in (run, *by_class.values()):
        for key in NUMBERS:
            if not _is_number_or_null(row.get(key)):
                raise ConfigError(f"{path}: {key} is no number")
    _check_lists(path, run)
    seed = run.get("seed")
    return Case(
        file=path,
        run=run,
        rate=_rate(path, run.get("request_rate")),
        seed=None if seed is None else str(seed),
        chapter=tuple(_text(run.get(key)) for key in CHAPTER_KEYS),
        line=tuple(_text(run.get(key)) for key in LINE_KEYS),
    )


def _check_lists(path: Path, run: Result) -> None:
    """Distributions and timeline, where they are recorded, have the form that they were given."""
    try:
        curves = [c[name] for c in run.get("distributions", {}).values() for name in QUANTILES]
        is_sound = all(len(curve) in (0, STEPS + 1) for curve in curves)
        if "timeline" in run:
            course = run["timeline"]
            courses = [course[name] for name in COURSES]
            is_sound &= len({len(values) for values in courses}) == 1
            curves += [[course["span_s"]], *courses]
        is_sound &= all(_is_number_or_null(value) for curve in curves for value in curve)
    except (AttributeError, KeyError, TypeError):
        is_sound = False
    if not is_sound:
        raise ConfigError(f"{path}: distributions or timeline are not as `giusto` writes them")


def _rate(path: Path, value: Any) -> Rate:
    if value is None:
        return None
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if not rate > 0:
        raise ConfigError(f"{path}: request_rate is {value!r}, not a number above 0")
    return rate


def _is_number_or_null(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text(value: Any) -> str | None:
    """A setting as it is shown; None where the file does not say."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in sorted(value.items())) or None
    return f"{value:g}" if isinstance(value, float) else str(value)
