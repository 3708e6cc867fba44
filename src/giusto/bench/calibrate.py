"""What the idle machine gives each class: the yardstick of the built-in workload's SLOs.

Measured once and stored in every result, so that all policies and rates are judged by the same
promises: `--calibration FILE` reads it back, from a result or from a file of its own.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from giusto.bench.client import Client
from giusto.bench.drive import Driver
from giusto.core.errors import ConfigError
from giusto.metrics.records import Record
from giusto.workload.mixed import ClassTimes
from giusto.workload.records import Entry

Times = dict[str, ClassTimes]


async def calibrate(
    client: Client,
    arrivals: Mapping[str, Sequence[Sequence[Entry]]],
    on_done: Callable[[], None] = lambda: None,
) -> Times:
    """Send each arrival alone, one after the other, and take the medians of each class.

    The first arrival of a class warms the server up and is not counted. Raises ConfigError when a
    request is not answered.
    """
    times: Times = {}
    for name, units in arrivals.items():
        runs: list[list[Record]] = []
        for unit in units:
            run = await Driver(client).drive(unit)
            if run.is_interrupted:
                raise asyncio.CancelledError
            for record in run.records:
                if not record.is_answered:
                    raise ConfigError(
                        f"calibration failed on {record.id}: {record.error or record.refused}"
                    )
            runs.append(run.records)
            on_done()
        deliveries = [[record.delivery for record in run] for run in runs]
        times[name] = ClassTimes.of(deliveries[1:] or deliveries)
    return times


def to_json(times: Times) -> dict[str, dict[str, float | None]]:
    """The form in result files, in milliseconds."""
    return {
        name: {
            "ttft_ms": of.ttft * 1000,
            "tpot_ms": of.tpot * 1000,
            "e2el_ms": of.e2e * 1000,
            "program_ms": None if of.program is None else of.program * 1000,
        }
        for name, of in times.items()
    }


def load(path: Path) -> Times:
    """Read a calibration, from a file of its own or from a result."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        classes = content.get("calibration") or content["runs"][0]["calibration"]
        return {name: _from_json(row) for name, row in classes.items()}
    except OSError as error:
        raise ConfigError(f"cannot read calibration {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"{path} holds no calibration; give a result of `giusto bench` with the mixed workload"
        ) from error


def save(path: Path, times: Times) -> None:
    """Write a calibration to a file of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"calibration": to_json(times)}, indent=2) + "\n", encoding="utf-8")


def _from_json(row: Mapping[str, Any]) -> ClassTimes:
    program_ms = row.get("program_ms")
    return ClassTimes(
        ttft=float(row["ttft_ms"]) / 1000,
        tpot=float(row["tpot_ms"]) / 1000,
        e2e=float(row["e2el_ms"]) / 1000,
        program=None if program_ms is None else float(program_ms) / 1000,
    )
