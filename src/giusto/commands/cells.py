"""Many runs, some at a time, each kept as soon as it is done."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from giusto.bench import results
from giusto.core.errors import ConfigError
from giusto.sim.run import SimRun

Result = dict[str, Any]


class Cells:
    """Results by run, in the order of the runs, in one file. The file is written after each.

    With `is_resuming` what the file holds of these runs is taken from it.
    """

    def __init__(self, runs: Sequence[SimRun], path: Path | None, *, is_resuming: bool) -> None:
        self.runs = runs
        self._path = path
        self._done: dict[int, Result] = {}
        self._others: list[Result] = []
        if path is not None and is_resuming and path.exists() and path.stat().st_size:
            self._take(results.read(path))
        if path is not None:
            results.prepare(path)

    @property
    def missing(self) -> list[int]:
        """Places of the runs that have no result yet."""
        return [at for at in range(len(self.runs)) if at not in self._done]

    @property
    def results(self) -> list[Result]:
        return [self._done[at] for at in sorted(self._done)]

    def put(self, at: int, result: Result) -> None:
        """Keep a result, on disk too."""
        self._done[at] = result
        if self._path is not None:
            results.write(self._path, [*self._others, *self.results])

    def _take(self, found: Sequence[Result]) -> None:
        abouts = [run.about for run in self.runs]
        for result in found:
            places = (
                at
                for at, about in enumerate(abouts)
                if at not in self._done
                and all(result.get(key) == value for key, value in about.items())
            )
            at = next(places, None)
            if at is None:
                self._others.append(result)
            else:
                self._done[at] = result


def run_cells(
    cells: Cells, simulate: Callable[[SimRun], Result], jobs: int
) -> Iterator[tuple[int, Result]]:
    """Run what is missing in `jobs` processes; yields (place, result) as each ends.

    With one job everything runs in this process. Raises what a run raises.
    """
    missing = cells.missing
    if jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {jobs}")
    if jobs == 1 or len(missing) < 2:
        for at in missing:
            result = simulate(cells.runs[at])
            cells.put(at, result)
            yield at, result
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(missing)), mp_context=context) as pool:
        futures: dict[Future[Result], int] = {
            pool.submit(simulate, cells.runs[at]): at for at in missing
        }
        try:
            for future in as_completed(futures):
                at = futures[future]
                cells.put(at, future.result())
                yield at, future.result()
        except BaseException as error:
            # What is under way may end well: keep it, or it would have to be run again.
            pool.shutdown(cancel_futures=True)
            for future, at in futures.items():
                if at in cells.missing and not future.cancelled() and not future.exception():
                    cells.put(at, future.result())
            if isinstance(error, BrokenProcessPool):
                raise ConfigError(
                    "a process that simulated was killed, most likely for lack of memory; "
                    "try fewer --jobs"
                ) from error
            raise
