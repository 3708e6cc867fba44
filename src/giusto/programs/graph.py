"""Call graphs: what ended programs looked like, by stages.

A stage is a set of calls that could run side by side. A stage follows the one before it once its
tools have run; the calls within one are in the order of their arrival. Of a call nothing is kept
but its tokens: no text, no names.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import log1p

from giusto.programs import budget

#: The fields of an `Outlook` but the last, in its order and that of `Graph.ahead`.
MEASURES = ("stages", "calls", "prompt_tokens", "output_tokens", "path_tokens", "tool_time")
STAGES, CALLS, PROMPT, OUTPUT, PATH, TOOLS = range(len(MEASURES))
#: A value per measure.
Row = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """Calls as (prompt tokens, output tokens), and the seconds of tools before them."""

    calls: tuple[tuple[int, int], ...]
    tool_time: float = 0.0

    @property
    def longest(self) -> int:
        """Output tokens of its longest call."""
        return max(output for _, output in self.calls)

    @property
    def work(self) -> float:
        """The longest call in output tokens, its prompt weighed in."""
        return max(budget.PROMPT_WEIGHT * prompt + output for prompt, output in self.calls)


class Graph:
    """A program that has ended; never changed.

    Call `i` of stage `s` is at `first[s] + i` of `log_prompts`, `log_news` and `log_outputs`, as
    long as that is below `first[s + 1]`. `ahead` has a row per measure: what is left after each
    stage.
    """

    __slots__ = (
        "_tools_done",
        "_work_ahead",
        "_work_done",
        "ahead",
        "app",
        "first",
        "log_news",
        "log_outputs",
        "log_prompts",
        "stages",
    )

    def __init__(self, app: str | None, stages: Iterable[Stage]) -> None:
        self.app = app
        self.stages = tuple(stages)
        if not self.stages or not all(stage.calls for stage in self.stages):
            raise ValueError("a graph has at least one stage, and a stage at least one call")
        calls = [call for stage in self.stages for call in stage.calls]
        self.log_prompts = array("d", (log1p(prompt) for prompt, _ in calls))
        self.log_news = array("d", map(log1p, _news(self.stages)))
        self.log_outputs = array("d", (log1p(output) for _, output in calls))
        self.first = array("l", [0])
        for stage in self.stages:
            self.first.append(self.first[-1] + len(stage.calls))
        self.ahead = tuple(
            _left([measure(stage) for stage in self.stages]) for measure in _OF_STAGE
        )
        work = [stage.work for stage in self.stages]
        self._work_ahead = _left(work)
        self._work_done = array("d", accumulate(work))
        self._tools_done = array("d", accumulate(stage.tool_time for stage in self.stages))

    @property
    def num_stages(self) -> int:
        return len(self.stages)

    @property
    def num_calls(self) -> int:
        return self.first[-1]

    def share(self, stage: int, token_time: float) -> float:
        """The cumulative share of its time that has passed once this stage ends."""
        done = self._tools_done[stage] + token_time * self._work_done[stage]
        left = self.ahead[TOOLS][stage] + token_time * self._work_ahead[stage]
        return budget.share(done, left)

    def after(self, stage: int) -> Row:
        """What is left, by measure, once this stage has ended."""
        return tuple(row[stage] for row in self.ahead)

    def rest(self, stage: int, answered: int) -> Row:
        """What is left, by measure, once so many calls of this stage were answered.

        Those it still lacks are as long as the stage's calls are on average.
        """
        stages, calls, prompt, output, path, tools = self.after(stage)
        ours = self.stages[stage].calls
        lacking = max(0, len(ours) - answered)
        if lacking:
            calls += lacking
            prompt += lacking * sum(call[0] for call in ours) / len(ours)
            output += lacking * sum(call[1] for call in ours) / len(ours)
        return stages, calls, prompt, output, path, tools

    def rows(self) -> list[Row]:
        """For each number of calls done, from 1, what is left, by measure."""
        made: list[Row] = []
        for index, stage in enumerate(self.stages):
            after = self.after(index)
            left = [len(stage.calls), *(sum(column) for column in zip(*stage.calls, strict=True))]
            for prompt, output in stage.calls:
                left = [left[0] - 1, left[1] - prompt, left[2] - output]
                mine = (after[1] + left[0], after[2] + left[1], after[3] + left[2])
                made.append((after[0], *mine, after[4], after[5]))
        return made


_OF_STAGE: tuple[Callable[[Stage], float], ...] = (
    lambda stage: 1.0,
    lambda stage: len(stage.calls),
    lambda stage: sum(prompt for prompt, _ in stage.calls),
    lambda stage: sum(output for _, output in stage.calls),
    lambda stage: stage.longest,
    lambda stage: stage.tool_time,
)


def new_tokens(prompt: int, before: Iterable[tuple[int, int]]) -> int:
    """What a prompt adds to the longest of the calls before it that it may continue.

    That is one whose prompt and answer fit into it; if none does, all of it is new.
    """
    return prompt - max((p + o for p, o in before if p + o <= prompt), default=0)


def _news(stages: Sequence[Stage]) -> Iterator[int]:
    before: tuple[tuple[int, int], ...] = ()
    for stage in stages:
        for prompt, _ in stage.calls:
            yield new_tokens(prompt, before)
        before = stage.calls


def _left(values: Sequence[float]) -> array[float]:
    """What comes after each: sums of all that follow."""
    sums, total = array("d", values), 0.0
    for index in range(len(values) - 1, -1, -1):
        sums[index] = total
        total += values[index]
    return sums
