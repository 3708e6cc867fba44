"""Result files: `{"runs": [run]}`, with a single run's keys repeated at the top.

One run is one flat object. Keys that vLLM's `bench serve` has keep its names and meaning, so its
plotting scripts read these files. `distributions` and `timeline` hold what a report draws. Strict
JSON: an infinite figure is null.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from giusto.core.errors import ConfigError
from giusto.metrics.distributions import distributions, timeline
from giusto.metrics.summary import Goodput, Summary, percentile, summarize

if TYPE_CHECKING:
    # Brings the HTTP client, which results do without.
    from giusto.bench.drive import Run

Result = dict[str, Any]


def result(run: Run, about: Mapping[str, Any], goodput: Goodput | None = None) -> Result:
    """One run's flat object: what it was (`about`), then its figures."""
    figures: Summary = summarize(run.records, goodput=goodput)
    errors = Counter(r.error or r.refused for r in run.records if r.error or r.refused)
    lags = run.lags or [0.0]
    return {
        **about,
        "is_interrupted": run.is_interrupted,
        **figures,
        "errors": dict(errors.most_common(5)),
        "client_lag_p99_ms": (percentile(lags, 99) or 0.0) * 1000,
        "client_lag_max_ms": max(lags) * 1000,
        "distributions": distributions(run.records),
        "timeline": timeline(run.records),
    }


def write(path: Path, runs: Sequence[Result]) -> None:
    """Write a result file: a key per line, which `json` does many times faster than indenting."""
    made = [_strict(run) for run in runs]
    objects = ["{\n" + ",\n".join(_lines(run)) + "\n}" for run in made]
    single = _lines(made[0]) if len(made) == 1 else []
    lines = [*single, '"runs": [' + ",\n".join(objects) + "]"]
    prepare(path)
    _put(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _put(path: Path, text: str) -> None:
    """Replace a file as a whole, so that an interrupted write leaves the old one."""
    target = path.resolve()
    if not target.is_file():
        # A device or a pipe is written to.
        target.write_text(text, encoding="utf-8")
        return
    part = target.with_name(f".{target.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(target)


def prepare(path: Path) -> None:
    """Make sure before a long run that its result can be written; ConfigError says why not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def read(path: Path) -> list[Result]:
    """Read the runs of a result file."""
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no result file of `giusto bench`") from error
    return list(runs)


def _lines(run: Result) -> list[str]:
    return [f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in run.items()]


def _strict(value: Any) -> Any:
    """Infinities and NaN have no form in JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _strict(item) for name, item in value.items()}
    return [_strict(item) for item in value] if isinstance(value, list | tuple) else value
