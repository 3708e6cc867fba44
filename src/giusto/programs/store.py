"""History on disk: JSON lines, a header with the version and then a program each.

A file that cannot be read as that is set aside, never overwritten, and history starts empty: what
was learned is worth less than a start. Nothing of a prompt or an answer is in the file, only
lengths, seconds and the names of apps.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import Any

from giusto.programs.graph import Graph, Stage
from giusto.programs.growing import MAX_CALLS, MAX_TOOL_TIME
from giusto.programs.history import Past

FORMAT, VERSION = "giusto-programs", 1
#: Tokens; more in one call is no length.
MAX_TOKENS = 2**40
#: More than a full history of the longest programs takes.
MAX_BYTES = 2**26

log = logging.getLogger(__name__)


def save(path: Path, past: Iterable[Past]) -> None:
    """Write a history whole or not at all; OSError where that fails.

    Popularities are as they stand: `History.past(now)` brings them up to date.
    """
    lines = [json.dumps({"format": FORMAT, "version": VERSION})]
    lines += [json.dumps(_to_json(each), separators=(",", ":")) for each in past]
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(fresh, path)


def load(path: Path) -> list[Past]:
    """Read what `save` wrote; nothing where there is no file.

    A file of another version or with a mistake is renamed to end in `.bad`, with a warning that
    says where the mistake is, and nothing is taken from it.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        aside = path.with_name(f"{path.name}.bad")
        try:
            os.replace(path, aside)
            kept = f"it is kept as {aside}"
        except OSError as failed:
            kept = f"it could not be set aside ({failed.strerror})"
        log.warning("program history %s is not used: %s; %s", path, _reason(error), kept)
        return []


def parse(text: str) -> list[Past]:
    """Read a history; ValueError names the line of the first mistake."""
    lines = text.split("\n")
    _check_header(lines[0])
    past = []
    for number, line in enumerate(lines[1:], start=2):
        if line:
            try:
                past.append(_past(json.loads(line)))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ValueError(f"line {number}: {_reason(error)}") from error
    return past


def _check_header(line: str) -> None:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("line 1 is not the header of a program history") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError("line 1 is not the header of a program history")
    if header.get("version") != VERSION:
        raise ValueError(f"it has version {header.get('version')!r}, read is {VERSION}")


def _to_json(past: Past) -> dict[str, Any]:
    stages = [
        [round(stage.tool_time, 3), *(count for call in stage.calls for count in call)]
        for stage in past.graph.stages
    ]
    return {"app": past.graph.app, "popularity": round(past.popularity, 4), "stages": stages}


def _past(row: Any) -> Past:
    app, stages = row["app"], row["stages"]
    if app is not None and not isinstance(app, str):
        raise ValueError("app is a name or null")
    if not isinstance(stages, list) or not all(isinstance(stage, list) for stage in stages):
        raise ValueError("stages is a list of lists")
    if sum(len(stage) for stage in stages) > 3 * MAX_CALLS:
        raise ValueError(f"a program has at most {MAX_CALLS} calls")
    graph = Graph(app, (_stage(stage) for stage in stages))
    return Past(graph, _amount(row["popularity"], "popularity", 1e9))


def _stage(row: list[Any]) -> Stage:
    tool_time, *counts = row
    if len(counts) % 2 or not all(
        type(count) is int and 0 <= count <= MAX_TOKENS for count in counts
    ):
        raise ValueError("a stage is tool time, and prompt and output tokens of each call")
    calls = tuple(zip(counts[::2], counts[1::2], strict=True))
    return Stage(calls, _amount(tool_time, "tool time", MAX_TOOL_TIME))


def _amount(value: Any, name: str, most: float) -> float:
    if type(value) not in (int, float) or not isfinite(value) or not 0 <= value <= most:
        raise ValueError(f"{name} is a number from 0 to {most:g}, got {value!r}")
    return float(value)


def _reason(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
