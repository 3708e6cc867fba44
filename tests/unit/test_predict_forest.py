"""The forest of lengths: its sample, on disk and as rows, and the model."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from giusto.core.errors import ModelError
from giusto.core.events import LEVELS
from giusto.predict.features import NUM_FEATURES, features
from giusto.predict.forest import MAX_ROWS, VERSION, Forest, ForestSample, load_or_set_aside
from strategies import request

KNOWN = (0.25,) * NUM_FEATURES


def known(service_class: str, prompt: int = 8) -> tuple[float, ...]:
    made = request("a", prompt=prompt)
    made.service_class = service_class
    return features(made)


def two_classes(count: int, seed: int = 1) -> ForestSample:
    """Short answers around 20 tokens, long ones around 300."""
    draw = random.Random(seed)
    sample = ForestSample()
    for _ in range(count):
        sample.add(known("short"), draw.randint(10, 30))
        sample.add(known("long"), draw.randint(200, 400))
    return sample


# The sample


def test_a_request_is_a_row_at_each_milestone_before_its_end() -> None:
    """The target is what was still to come: at least one token."""
    sample = ForestSample()
    sample.add(KNOWN, 101)
    sample.add(KNOWN, 50)
    rows, left = sample.arrays()
    assert left.tolist() == [101, 51, 1, 50]
    assert np.expm1(rows[:, 0]).round().tolist() == [0, 50, 100, 0]
    assert rows.shape == (4, 1 + NUM_FEATURES)


def test_the_sample_is_bounded() -> None:
    """The oldest rows go."""
    sample = ForestSample(max_rows=3)
    for length in (1, 2, 3, 4):
        sample.add(KNOWN, length)
    assert sample.arrays()[1].tolist() == [2, 3, 4]
    assert ForestSample()._rows.maxlen == MAX_ROWS <= 5000


@pytest.mark.parametrize("count", [0, 7])
def test_a_sample_comes_back_from_disk(tmp_path: Path, count: int) -> None:
    """Row by row; the folder is made, and nothing is left beside the file."""
    path = tmp_path / "state" / "lengths.npz"
    sample = two_classes(count)
    sample.save(path)
    sample.save(path)
    back = load_or_set_aside(path)
    assert len(back) == len(sample)
    for stored, given in zip(back.arrays(), sample.arrays(), strict=True):
        assert np.array_equal(stored, given)
    assert list(path.parent.iterdir()) == [path]


def test_there_may_be_no_file(tmp_path: Path) -> None:
    """Then nothing was learned yet."""
    assert len(load_or_set_aside(tmp_path / "none.npz")) == 0


def write_arrays(path: Path, **changed: Any) -> None:
    arrays: dict[str, Any] = {
        "version": np.array(VERSION),
        "features": np.zeros((2, NUM_FEATURES), np.float32),
        "emitted": np.array([0, 50], np.int32),
        "length": np.array([60, 60], np.int32),
    }
    with path.open("wb") as file:
        np.savez(file, **{k: v for k, v in (arrays | changed).items() if v is not None})


def cut(path: Path) -> None:
    write_arrays(path)
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    """Damage within the compressed rows, which only the checksum shows."""
    two_classes(20).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def single(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


BAD: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("these are no lengths\n"),
    "cut": cut,
    "flipped": flipped,
    "single array": single,
    "older version": lambda path: write_arrays(path, version=np.array(VERSION - 1)),
    "newer version": lambda path: write_arrays(path, version=np.array(VERSION + 1)),
    "no version": lambda path: write_arrays(path, version=None),
    "odd version": lambda path: write_arrays(path, version=np.array([VERSION, 2])),
    "fewer features": lambda path: write_arrays(path, features=np.zeros((2, 5), np.float32)),
    "objects": lambda path: write_arrays(path, features=np.array([{}, {}], object)),
    "words": lambda path: write_arrays(path, emitted=np.array(["a", "b"])),
    "rows missing": lambda path: write_arrays(path, length=np.array([60], np.int32)),
    "no number": lambda path: write_arrays(
        path, features=np.full((2, NUM_FEATURES), np.nan, np.float32)
    ),
    "ended before": lambda path: write_arrays(path, length=np.array([60, 50], np.int32)),
    "negative": lambda path: write_arrays(path, emitted=np.array([-1, 50], np.int32)),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_kept_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """The forest starts without it and says so; the next one is saved under the old name."""
    path = tmp_path / "lengths.npz"
    BAD[kind](path)
    content = path.read_bytes()
    with pytest.raises(ModelError, match=r"lengths\.npz is"):
        ForestSample.load(path)
    (tmp_path / "lengths.npz.bad").write_text("an older one")
    assert len(load_or_set_aside(path)) == 0
    assert not path.exists()
    assert (tmp_path / "lengths.npz.bad").read_bytes() == content
    assert "lengths.npz.bad" in caplog.text


def test_a_bad_file_that_cannot_be_moved_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It starts without it all the same."""
    path = tmp_path / "lengths.npz"
    path.write_text("these are no lengths\n")
    (tmp_path / "lengths.npz.bad" / "in the way").mkdir(parents=True)
    assert len(load_or_set_aside(path)) == 0
    assert "left where it is" in caplog.text


# The model


def test_too_few_rows_make_no_forest() -> None:
    """It stays as it was."""
    forest = Forest()
    forest.fit(ForestSample())
    assert not forest.is_fitted


def test_a_forest_tells_classes_apart_and_knows_progress() -> None:
    """Quantiles rise, exceed what was emitted, and are of the class asked about."""
    forest = Forest(trees=10)
    forest.fit(two_classes(100))
    assert forest.is_fitted
    short, long, late = forest.quantiles(
        [(known("short"), 0), (known("long"), 0), (known("long"), 300)]
    )
    assert len(short) == len(LEVELS)
    assert all(list(answer) == sorted(answer) for answer in (short, long, late))
    assert short[-1] < 100 < long[0]
    assert long[-1] <= 450
    assert late[0] > 300
    assert forest.quantiles([]) == []


def test_a_forest_is_repeatable() -> None:
    """The same sample and seed give the same answers."""
    asks = [(known("short"), 0), (known("long"), 50)]
    answers = []
    for _ in range(2):
        forest = Forest(trees=5, seed=3)
        forest.fit(two_classes(50))
        answers.append(forest.quantiles(asks))
    assert answers[0] == answers[1]
