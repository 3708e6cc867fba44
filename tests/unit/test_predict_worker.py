"""The forest's worker: its budget and desk under a clock of the test, and the process itself."""

from __future__ import annotations

import logging
import random
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from giusto.core.events import LEVELS
from giusto.predict import forest_client
from giusto.predict.features import NUM_FEATURES, features
from giusto.predict.forest import MIN_ROWS, ForestSample
from giusto.predict.forest_client import Answer, ForestClient, Lines
from giusto.predict.forest_worker import MAX_PENDING, Budget, Desk, save_to
from strategies import request

KNOWN = (0.25,) * NUM_FEATURES


def known(service_class: str) -> tuple[float, ...]:
    made = request("a")
    made.service_class = service_class
    return features(made)


# The worker without its process


class Model:
    """Costs what it is told, and answers with twice the progress."""

    def __init__(self, fit: float = 1.0, answer: float = 0.01, is_fitted: bool = False) -> None:
        self.fit_cost, self.answer_cost = fit, answer
        self.is_fitted = is_fitted
        self.spent = 0.0
        self.batches: list[int] = []

    def cpu(self) -> float:
        return self.spent

    def fit(self, sample: ForestSample) -> None:
        self.spent += self.fit_cost
        self.is_fitted = True

    def quantiles(self, asks: Sequence[tuple[Sequence[float], int]]) -> list[tuple[float, ...]]:
        self.spent += self.answer_cost
        self.batches.append(len(asks))
        return [(2.0 * emitted,) for _, emitted in asks]


def desk(model: Model, **more: Any) -> Desk:
    return Desk(model, ForestSample(), model.cpu, **more)


def teach(to: Desk, count: int = MIN_ROWS) -> None:
    for _ in range(count):
        to.receive({"learn": 40, "known": list(KNOWN)})


def ask(to: Desk, name: str, emitted: int = 0) -> None:
    to.receive({"ask": name, "emitted": emitted, "known": list(KNOWN)})


def test_a_budget_spaces_work_by_its_cost() -> None:
    """From begin to begin at least the least gap, and the cost over the share."""
    budget = Budget(0.05, 60.0)
    budget.spend(10.0, 1.0)
    assert budget.free_at == 70.0
    budget.spend(70.0, 6.0)
    assert budget.free_at == pytest.approx(190.0)


def test_it_fits_once_a_minute_at_most_and_when_there_is_news() -> None:
    """The wait says when; without news there is nothing to wait for."""
    model = Model()
    worker = desk(model)
    assert worker.wait(0.0) is None
    teach(worker, MIN_ROWS - 1)
    assert (worker.work(0.0), worker.wait(0.0)) == ([], None)
    teach(worker, 1)
    assert worker.wait(5.0) == 0
    assert worker.work(5.0) == [{"fitted": MIN_ROWS, "seconds": 1.0}]
    assert worker.wait(6.0) is None
    teach(worker, 1)
    assert (worker.work(64.9), worker.wait(64.0)) == ([], 1.0)
    assert worker.work(65.0) == [{"fitted": MIN_ROWS + 1, "seconds": 1.0}]


def test_a_slow_fit_is_rarer() -> None:
    """Six seconds of a core every two minutes: a twentieth."""
    model = Model(fit=6.0)
    worker = desk(model)
    for now in range(0, 3600, 10):
        teach(worker)
        worker.work(float(now))
    assert model.spent <= 0.05 * 3600 + model.fit_cost


def test_answers_are_given_at_once_and_then_together() -> None:
    """An answer of 10 ms leaves 190 ms in which others gather."""
    model = Model(is_fitted=True)
    worker = desk(model)
    ask(worker, "a", 50)
    assert worker.work(1.0) == [{"id": "a", "lengths": (100.0,)}]
    for name in "bcb":
        ask(worker, name, 7)
    assert worker.work(1.1) == []
    assert worker.wait(1.1) == pytest.approx(0.1)
    assert [reply["id"] for reply in worker.work(1.2)] == ["c", "b"]
    assert model.batches == [1, 2]


def test_an_hour_under_load_takes_a_tenth_of_a_core() -> None:
    """Fits and answers together, whoever asks and finishes meanwhile."""
    model = Model(fit=4.0, answer=0.03)
    worker = desk(model)
    teach(worker)
    for tick in range(36_000):
        ask(worker, f"r{tick}")
        teach(worker, 1)
        worker.work(tick / 10)
    assert model.spent <= 0.1 * 3600 + 5


def test_who_asks_before_the_first_fit_is_answered_after_it() -> None:
    """And of too many the oldest go without."""
    model = Model()
    worker = desk(model)
    for i in range(MAX_PENDING + 2):
        ask(worker, f"r{i}")
    assert worker.work(0.0) == []
    teach(worker)
    worker.work(0.0)
    replies = worker.work(0.1)
    assert len(replies) == MAX_PENDING
    assert replies[0]["id"] == "r2"


def test_what_was_learned_is_saved_after_a_fit_and_at_the_end() -> None:
    """Once for each change."""
    saved: list[int] = []
    worker = desk(Model(), save=lambda sample: saved.append(len(sample)))
    worker.close()
    teach(worker)
    worker.work(0.0)
    worker.close()
    teach(worker, 1)
    worker.close()
    assert saved == [MIN_ROWS, MIN_ROWS + 1]


def test_a_stored_sample_is_fitted_at_start() -> None:
    """Answers do not wait for the first requests to end."""
    model = Model()
    sample = ForestSample()
    for _ in range(MIN_ROWS):
        sample.add(KNOWN, 9)
    assert Desk(model, sample, model.cpu).work(0.0) == [{"fitted": MIN_ROWS, "seconds": 1.0}]


def test_a_full_disk_costs_the_history_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the file cannot be written, the log says so and nothing is raised."""
    (tmp_path / "file").write_text("in the way")
    save_to(tmp_path / "file" / "lengths.npz")(ForestSample())
    assert "cannot keep" in caplog.text


# The process


def test_lines_come_in_pieces() -> None:
    """Whatever the socket cuts."""
    lines = Lines()
    assert list(lines.feed(b'{"a": 1}\n{"b"')) == [{"a": 1}]
    assert list(lines.feed(b": 2}")) == []
    assert list(lines.feed(b'\n{"c": 3}\n')) == [{"b": 2}, {"c": 3}]


def answers_of(client: ForestClient, count: int) -> dict[str, tuple[float, ...]]:
    """Wait for so many answers, or for the end of the worker."""
    answers: list[Answer] = []
    while len(answers) < count and client.is_alive:
        readable, _, _ = select.select([client], [], [], 120)
        assert readable, "the worker is silent"
        answers += client.poll()
    return dict(answers)


def test_a_worker_learns_answers_and_remembers(tmp_path: Path) -> None:
    """A second one answers from what the first one stored."""
    path = tmp_path / "lengths.npz"
    draw = random.Random(1)
    client = ForestClient(path)
    try:
        client.ask("early", known("short"))
        for _ in range(60):
            client.learn(known("short"), draw.randint(10, 30))
            client.learn(known("long"), draw.randint(200, 400))
        assert answers_of(client, 1).keys() == {"early"}
    finally:
        client.close(timeout=60)
    stored = len(ForestSample.load(path))
    assert stored >= 60 * 5

    client = ForestClient(path)
    try:
        client.ask("short", known("short"))
        client.ask("long", known("long"), 50)
        answers = answers_of(client, 2)
    finally:
        client.close(timeout=60)
    assert answers["short"][-1] < 100 < answers["long"][0]
    assert len(answers["long"]) == len(LEVELS)
    assert len(ForestSample.load(path)) == stored
    assert client.poll() == []


def test_a_worker_that_dies_is_logged_and_missed_by_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Asking and teaching go nowhere from then on; the log has one line of it."""
    caplog.set_level(logging.WARNING)
    client = ForestClient(command=[sys.executable, "-c", "raise SystemExit(3)"])
    try:
        client.ask("a", KNOWN)
        assert answers_of(client, 1) == {}
        client.ask("b", KNOWN)
        client.learn(KNOWN, 5)
        assert client.poll() == []
        assert not client.is_alive
        assert [record.levelname for record in caplog.records] == ["WARNING"]
    finally:
        client.close()


def test_a_worker_that_does_not_read_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is dropped, and at the end it is killed."""
    monkeypatch.setattr(forest_client, "MAX_UNSENT", 1000)
    client = ForestClient(command=[sys.executable, "-c", "import signal; signal.pause()"])
    try:
        while not client.num_dropped:
            client.learn(KNOWN, 5)
        assert client.is_alive
    finally:
        client.close(timeout=0.1)
