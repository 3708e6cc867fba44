"""The workload `tempo-mix`: four kinds of users on one machine, a third of the calls in programs.

Of 100 calls 30 are streams, 30 have a deadline, 30 belong to programs and 10 are best effort; half
of the programs are trees of thought of eight calls, half are deep research of six. A program counts
as one arrival, so that an arrival makes `CALLS_PER_ARRIVAL` calls on average. Every call has the
lengths of a row of ShareGPT's, drawn with replacement. A promise is the base of its kind times 1,
2, 3 or 4, each as likely: neither it nor the cap tells of the lengths drawn.

After the mixed workload of Tempo (arXiv 2504.20068), whose requests of every kind have the lengths
of one trace too, and whose deadlines for programs are so much per stage. The bases are absolute,
made for an 8B model on an 80 GB GPU: profile `llama-3.1-8b-a100`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from giusto.core.slo import SLO, Deadline, Streaming
from giusto.workload import readers
from giusto.workload.agents import answer
from giusto.workload.records import Entry, Step
from giusto.workload.samples import spec

NAME = "tempo-mix"
#: Seconds of arrivals, and of these what is served but not counted: the machine starts empty.
DURATION = 600.0
WARMUP = 60.0
#: Arrivals per second: the highest Poisson rate at which `sarathi` with its best chunk of 1,024
#: tokens attains 90 %, best effort included, mean of seeds 1 to 5, bisected to 2 %. Poisson and
#: bursty runs are both set by it. 91.2 % here, 89.6 % at 16.977:
#: python benchmarks/policies/tempo_mix.py --knee --between 15.5 17.5
KNEE = 16.722

#: Tokens of an answer; longer rows are left out, so that no answer is cut.
CAP = 1_024
#: What a promise is a multiple of, in seconds: streams, deadlines, each stage of a program.
TTFT, TPOT, DEADLINE, STAGE = 0.8, 0.08, 8.0, 8.0
SCALES = (1, 2, 3, 4)
#: A tool runs between two stages: log-normal, the median in seconds, sigma of the natural log.
TOOL_MEDIAN, TOOL_SIGMA = 1.0, 1.0

#: Calls of each stage. Every call of a stage waits for all of the stage before.
TREE_OF_THOUGHT = (3, 1, 3, 1)
DEEP_RESEARCH = (1, 1, 1, 1, 1, 1)


@cache
def rows() -> tuple[tuple[int, int], ...]:
    """Prompt and answer lengths, tokens, of the shipped rows whose answers fit the cap."""
    lengths = (
        (entry.prompt_tokens or 1, entry.output_tokens or 1)
        for entry in readers.read(spec("sharegpt")).entries
    )
    return tuple((prompt, output) for prompt, output in lengths if output <= CAP)


@dataclass(frozen=True, slots=True)
class Single:
    """Requests that stand alone; `promise` makes an SLO of a scale, None is best effort."""

    name: str
    share: float
    promise: Callable[[int], SLO | None]

    def arrive(self, name: str, now: float, rng: random.Random) -> list[Entry]:
        """Draw one request; `name` is its id."""
        slo = self.promise(rng.choice(SCALES))
        prompt, output = rng.choice(rows())
        return [
            Entry(
                id=name,
                arrival=now,
                service_class=self.name,
                prompt_tokens=prompt,
                max_tokens=CAP,
                output_tokens=output,
                slo=slo,
            )
        ]


@dataclass(frozen=True, slots=True)
class Staged:
    """Programs of stages, each of which waits for all calls of the one before and for a tool.

    With `is_quoting` a prompt begins with the answers of the stage before. That adds their tokens
    to it, but shares no KV: they stood behind another prompt.
    """

    name: str
    share: float
    stages: tuple[int, ...]
    is_quoting: bool = False

    def arrive(self, name: str, now: float, rng: random.Random) -> list[Entry]:
        """Draw one program; `name` is its id. All calls of a stage wait for the same tool."""
        deadline = STAGE * len(self.stages) * rng.choice(SCALES)
        made: list[Entry] = []
        before: list[Entry] = []
        for stage, count in enumerate(self.stages):
            tool_time = TOOL_MEDIAN * rng.lognormvariate(0.0, TOOL_SIGMA) if stage else 0.0
            is_last = stage == len(self.stages) - 1
            calls = []
            for index in range(count):
                step = Step(
                    name,
                    f"{stage}-{index}",
                    tuple(entry.step.call for entry in before if entry.step is not None),
                    tool_time,
                    deadline,
                    stage,
                    is_last,
                    self.name,
                )
                calls.append(self._call(step, now, before, rng))
            made += calls
            before = calls
        return made

    def _call(self, step: Step, now: float, before: Sequence[Entry], rng: random.Random) -> Entry:
        prompt, output = rng.choice(rows())
        pieces = tuple(map(answer, before)) if self.is_quoting else ()
        return Entry(
            id=f"{step.program}-{step.call}",
            arrival=now,
            service_class=self.name,
            prompt_tokens=prompt + sum(piece.tokens for piece in pieces),
            pieces=pieces,
            max_tokens=CAP,
            output_tokens=output,
            step=step,
        )


#: Thirty calls in programs, as many programs of the one kind as of the other.
_PROGRAMS = 30 / (sum(TREE_OF_THOUGHT) + sum(DEEP_RESEARCH))

#: Shares are of arrivals: of 100 calls, those of a program counted once.
CLASSES: tuple[Single | Staged, ...] = (
    Single("chat", 30, lambda scale: Streaming(TTFT * scale, TPOT * scale)),
    Single("task", 30, lambda scale: Deadline(DEADLINE * scale)),
    Staged("tree-of-thought", _PROGRAMS, TREE_OF_THOUGHT),
    Staged("deep-research", _PROGRAMS, DEEP_RESEARCH, is_quoting=True),
    Single("batch", 10, lambda scale: None),
)
CALLS_PER_ARRIVAL = 100 / sum(service_class.share for service_class in CLASSES)
