"""A quantile regression forest of output lengths, and the sample that it is fitted to.

The only module that uses scikit-learn and quantile-forest, which are loaded when a forest is
fitted. It runs in a process of its own (`forest_worker`), never inside a scheduling step. What is
kept across restarts is the sample, as plain arrays; the forest is fitted anew.

Source: Meinshausen, "Quantile regression forests" (JMLR 7, 2006), as Tempo uses them for output
lengths (arXiv 2504.20068). Differs: 50 trees on at most 5,000 rows, so that a refit takes a second
or two; the target is the logarithm of the tokens to come, with progress as a feature; prompts are
hashed tokens, not a fitted vocabulary.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from giusto.core.errors import ModelError
from giusto.core.events import LEVELS
from giusto.predict.features import NUM_FEATURES, row

log = logging.getLogger(__name__)

#: Of the file; goes up when features or their meaning change.
VERSION = 1
MAX_ROWS = 5000
#: Fewer rows than this make no forest.
MIN_ROWS = 100
#: A finished request is a row at each of these numbers of tokens that it went past. All are
#: multiples of 50; they thin out so that a long answer does not push fifty others out. The same
#: for every request: to draw some rows of each would favour short ones.
PROGRESS = (0, 50, 100, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400, 3200, 4800, 6400)
TREES = 50
#: Rows of a leaf: at least so many, of which so many answer. All leaves then weigh the same, as in
#: the paper, and memory is bounded however large a leaf is.
LEAF = 20

_Floats = npt.NDArray[np.float32]
_ARRAYS = ("features", "emitted", "length")


class ForestSample:
    """The newest rows: features, tokens emitted, and tokens in the end."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self._rows: deque[tuple[tuple[float, ...], int, int]] = deque(maxlen=max_rows)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, known: Sequence[float], length: int) -> None:
        """Take in a request that ended with `length` tokens; `known` is of `features`."""
        for emitted in PROGRESS:
            if emitted >= length:
                break
            self._rows.append((tuple(known), emitted, length))

    def arrays(self) -> tuple[_Floats, _Floats]:
        """Rows for a model, and the tokens that were still to come."""
        rows = [row(known, emitted) for known, emitted, _ in self._rows]
        left = [length - emitted for _, emitted, length in self._rows]
        return np.array(rows, np.float32), np.array(left, np.float32)

    def save(self, path: Path) -> None:
        """Write it beside `path` first: a crash leaves the old file or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        known = [known for known, _, _ in self._rows]
        with fresh.open("wb") as file:
            np.savez_compressed(
                file,
                version=np.array(VERSION),
                features=np.array(known, np.float32).reshape(len(known), NUM_FEATURES),
                emitted=np.array([emitted for _, emitted, _ in self._rows], np.int32),
                length=np.array([length for _, _, length in self._rows], np.int32),
            )
        os.replace(fresh, path)

    @classmethod
    def load(cls, path: Path, max_rows: int = MAX_ROWS) -> ForestSample:
        """Read what `save` wrote; ModelError for anything else, or of another version."""
        try:
            with path.open("rb") as file:
                stored = np.load(file, allow_pickle=False)
                if not isinstance(stored, np.lib.npyio.NpzFile):
                    raise ModelError(f"{path} is no sample of lengths: it holds a single array")
                with stored:
                    _require_version(path, np.asarray(stored["version"]))
                    known, emitted, length = (np.asarray(stored[name]) for name in _ARRAYS)
        except ModelError:
            raise
        except Exception as error:
            # Damage shows as an error of numpy, zipfile, zlib or struct, or as one of memory.
            raise ModelError(f"{path} is no sample of lengths: {error}") from error
        if not _is_sound(known, emitted, length):
            raise ModelError(f"{path} is no sample of lengths: its arrays do not fit together")
        sample = cls(max_rows)
        rows = (map(tuple, known.tolist()), emitted.tolist(), length.tolist())
        sample._rows.extend(zip(*rows, strict=True))
        return sample


def _require_version(path: Path, version: npt.NDArray[Any]) -> None:
    if version.tolist() != VERSION:
        raise ModelError(
            f"{path} is a sample of lengths of version {version}; this is version {VERSION}"
        )


def _is_sound(known: npt.NDArray[Any], emitted: npt.NDArray[Any], length: npt.NDArray[Any]) -> bool:
    if known.ndim != 2 or known.shape[1] != NUM_FEATURES:
        return False
    if not emitted.shape == length.shape == known.shape[:1]:
        return False
    if (known.dtype.kind, emitted.dtype.kind, length.dtype.kind) != ("f", "i", "i"):
        return False
    return bool(np.isfinite(known).all() and (emitted >= 0).all() and (length > emitted).all())


def load_or_set_aside(path: Path) -> ForestSample:
    """The stored sample, or an empty one where there is none or it cannot be used.

    A file that cannot be used is renamed to end in `.bad`, and the log says why.
    """
    if not path.exists():
        return ForestSample()
    try:
        return ForestSample.load(path)
    except ModelError as error:
        aside = path.with_name(path.name + ".bad")
        try:
            os.replace(path, aside)
            kept = f"kept as {aside}"
        except OSError as why:
            kept = f"left where it is ({why.strerror})"
        log.warning("%s; %s, lengths are learned from the start", error, kept)
        return ForestSample()


def load_library() -> Any:
    """The class of the model; ImportError without the extra `sim`. Takes a second."""
    from quantile_forest import RandomForestQuantileRegressor

    return RandomForestQuantileRegressor


class Forest:
    """The model: fit, then ask. Deterministic for a seed; one thread."""

    def __init__(self, trees: int = TREES, seed: int = 0) -> None:
        self._trees = trees
        self._seed = seed
        self._model: Any = None

    @property
    def is_fitted(self) -> bool:
        return self._model is not None

    def fit(self, sample: ForestSample) -> None:
        """Fit to the whole sample; with fewer than `MIN_ROWS` rows nothing changes."""
        if len(sample) < MIN_ROWS:
            return
        model = load_library()(
            n_estimators=self._trees,
            min_samples_leaf=LEAF,
            max_samples_leaf=LEAF,
            max_features=1 / 3,
            n_jobs=1,
            random_state=self._seed,
        )
        rows, left = sample.arrays()
        model.fit(rows, np.log(left))
        self._model = model

    def quantiles(self, asks: Iterable[tuple[Sequence[float], int]]) -> list[tuple[float, ...]]:
        """Whole lengths at `LEVELS`, never falling, for `features` and tokens emitted so far."""
        asks = list(asks)
        if not asks:
            return []
        rows = np.array([row(known, emitted) for known, emitted in asks], np.float32)
        logs = self._model.predict(
            rows, quantiles=list(LEVELS), interpolation="higher", weighted_quantile=False
        )
        left = np.maximum(1.0, np.round(np.exp(logs)))
        return [
            tuple(float(emitted + tokens) for tokens in each)
            for (_, emitted), each in zip(asks, left.tolist(), strict=True)
        ]
