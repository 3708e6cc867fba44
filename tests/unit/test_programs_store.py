"""History on disk: what is written is read back, and what cannot be read is set aside."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from giusto.programs import store
from giusto.programs.graph import Graph, Stage
from giusto.programs.growing import MAX_CALLS
from giusto.programs.history import Past

HEADER = {"format": "giusto-programs", "version": 1}
ROW: dict[str, Any] = {"app": "a", "popularity": 1.5, "stages": [[0.25, 100, 10, 90, 9]]}
PAST = [
    Past(Graph("a", [Stage(((100, 10), (90, 9)), 0.25), Stage(((200, 1),), 3.0)]), 1.5),
    Past(Graph(None, [Stage(((7, 70),))]), 0.125),
    Past(Graph("naïve \n\u2028app", [Stage(((1, 1),))])),
]


def text(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def contents(past: list[Past]) -> list[tuple[object, ...]]:
    return [(each.graph.app, each.graph.stages, each.popularity) for each in past]


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    """Apps, lengths, tool times and popularities; not the clock of the run."""
    path = tmp_path / "programs.jsonl"
    store.save(path, PAST)
    loaded = store.load(path)
    assert contents(loaded) == contents(PAST)
    assert {past.stamp for past in loaded} == {None}
    store.save(path, loaded[:1])
    assert contents(store.load(path)) == contents(PAST[:1])
    assert [each.name for each in tmp_path.iterdir()] == ["programs.jsonl"]


def test_without_a_file_there_is_no_history(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A first start says nothing."""
    with caplog.at_level(logging.WARNING):
        assert store.load(tmp_path / "none.jsonl") == []
    assert caplog.text == ""


def changed(**values: object) -> str:
    return text(HEADER, ROW, ROW | values)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "line 1 is not the header"),
        ("not json\n", "line 1 is not the header"),
        ("[]\n", "line 1 is not the header"),
        (text({"format": "other", "version": 1}), "line 1 is not the header"),
        (text(HEADER | {"version": 2}, ROW), "it has version 2, read is 1"),
        (text(HEADER) + '{"app": "a", "pop', "line 2: "),
        (text(HEADER) + "[" * 100_000, "line 2: "),
        (text(HEADER, 5), "line 2: "),
        (text(HEADER, {"app": "a", "stages": []}), "line 2: "),
        (text(HEADER, ROW, {"app": "a", "stages": [[0, 1, 1]]}), "line 3: 'popularity' is missing"),
        (changed(app=5), "line 3: app is a name or null"),
        (changed(stages=[]), "line 3: a graph has at least one stage"),
        (changed(stages=[[0.0]]), "line 3: a graph has at least one stage"),
        (changed(stages={}), "line 3: stages is a list of lists"),
        (changed(stages=[5]), "line 3: stages is a list of lists"),
        (changed(stages=[[]]), "line 3: "),
        (changed(stages=[[0, 1]]), "line 3: a stage is tool time, and prompt and output"),
        (changed(stages=[[0, 1, -1]]), "line 3: a stage is tool time, and prompt and output"),
        (changed(stages=[[0, 1, 1.5]]), "line 3: a stage is tool time, and prompt and output"),
        (changed(stages=[[0, 1, True]]), "line 3: a stage is tool time, and prompt and output"),
        (changed(stages=[[0, 1, 10**30]]), "line 3: a stage is tool time, and prompt and output"),
        (changed(stages=[["soon", 1, 1]]), "line 3: tool time is a number from 0 to 3600"),
        (changed(stages=[[-1, 1, 1]]), "line 3: tool time is a number from 0 to 3600"),
        (changed(stages=[[float("nan"), 1, 1]]), "line 3: tool time is a number from 0 to 3600"),
        (changed(popularity=float("inf")), "line 3: popularity is a number from 0 to 1e+09"),
        (changed(popularity=None), "line 3: popularity is a number from 0 to 1e+09"),
        (changed(stages=[[0, 1, 1]] * (MAX_CALLS + 1)), "line 3: a program has at most"),
    ],
)
def test_a_bad_file_is_set_aside(
    content: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """History starts without it, a warning says why, and the file is kept."""
    path = tmp_path / "programs.jsonl"
    path.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert store.load(path) == []
    assert reason in caplog.text
    assert f"kept as {path}.bad" in caplog.text
    assert not path.exists()
    assert (tmp_path / "programs.jsonl.bad").read_text() == content


def test_bytes_that_are_no_text_are_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As is a file too large to be one."""
    path = tmp_path / "programs.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    assert store.load(path) == []
    with path.open("wb") as file:
        file.truncate(store.MAX_BYTES + 1)
    with caplog.at_level(logging.WARNING):
        assert store.load(path) == []
    assert "larger than" in caplog.text


def test_a_file_that_cannot_be_moved_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """History starts without it all the same, and the warning says so."""
    path = tmp_path / "programs.jsonl"
    path.write_text("?")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(store.os, "replace", refuse)
    with caplog.at_level(logging.WARNING):
        assert store.load(path) == []
    assert "could not be set aside (no)" in caplog.text
    assert path.read_text() == "?"
    with pytest.raises(PermissionError):
        store.save(path, PAST)
    assert path.read_text() == "?"


def test_a_folder_is_no_history(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever stands there is set aside."""
    path = tmp_path / "programs.jsonl"
    path.mkdir()
    with caplog.at_level(logging.WARNING):
        assert store.load(path) == []
    assert (tmp_path / "programs.jsonl.bad").is_dir()
