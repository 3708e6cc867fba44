"""Shared fixtures, and the rule that CI skips nothing but what needs hardware it lacks."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
# Before torch is imported: threads that sleep instead of spinning leave room for a neighbour.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
IS_CI = os.environ.get("GIUSTO_CI", os.environ.get("CI", "")).lower() in ("1", "true")

# A busy neighbour must not fail a test; in CI the same examples are drawn each time.
settings.register_profile("giusto", deadline=None, derandomize=IS_CI)
settings.load_profile("giusto")


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    return bool(importlib.import_module("torch").cuda.is_available())


#: Marker: whether what it asks for is here. Only tests with one of these may be skipped in CI.
NEEDS: dict[str, Callable[[], bool]] = {
    "gpu": _has_gpu,
    "vllm": lambda: importlib.util.find_spec("vllm") is not None,
    "ray": lambda: importlib.util.find_spec("ray") is not None,
}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of traces, prompts and tiny models: `GIUSTO_DATA`, or beside the repository."""
    path = Path(os.environ.get("GIUSTO_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}; set GIUSTO_DATA")
    return path


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, is_here in NEEDS.items():
        if item.get_closest_marker(name) and not is_here():
            pytest.skip(f"no {name} here")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    is_excused = hasattr(report, "wasxfail") or any(map(item.get_closest_marker, NEEDS))
    if IS_CI and report.skipped and not is_excused:
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IS_CI and report.skipped:
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"CI skips nothing without a marker of {', '.join(NEEDS)}: {why}"
