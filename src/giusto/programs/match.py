"""How like a program under way each of history's is, kept up call by call.

Calls are compared with those at the same place, by what is known of them: once a call has come, its
prompt and what is new in that; once it has ended, its output. Each comparison is a Gaussian kernel
on the difference of log lengths, so that 100 tokens are to 200 as 1,000 to 2,000. Likeness is the
weighted mean of these, the latest stages weighing most. A call whose place the other program does
not have scores nothing, and a program with fewer stages than this one already has is dropped.

Source: Tempo (arXiv 2504.20068; JITServe), section 4.2. Differs: log lengths with a width of half
a natural unit in place of raw counts with a width of one token, under which no two real calls are
alike; what is new in a prompt counts for itself, for in the whole of it a tool's reply is lost;
running programs are compared with whole ones by their beginnings, which the published code cannot;
edges are compared through stages only.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import exp, log1p, pow

from giusto.programs.graph import Graph
from giusto.programs.growing import Call

#: Width of the kernel in natural logarithms: a factor of 1.65 is one standard deviation.
SIGMA = 0.5
#: Weights of a call's lengths: the prompt, what is new in it, the output.
PROMPT_WEIGHT, NEW_WEIGHT, OUTPUT_WEIGHT = 0.2, 0.5, 0.3
#: What is left of a stage's weight with each that follows.
MEMORY = 0.97
#: Of many candidates one half as like as the best counts 1 / 2^SHARPNESS. With as many as FEW the
#: exponent is half of that: a sharp choice among few is a guess.
SHARPNESS, FEW = 5.0, 20
#: So many of the most alike are asked; of the others one below this part of the best is dropped.
NEIGHBOURS = 64
HOPELESS = 0.2

#: Programs of history with their weights.
Neighbours = list[tuple[Graph, float]]

_RATE = -0.5 / SIGMA**2


def kernel(difference: float) -> float:
    """1 for equal log lengths, falling to 0."""
    return exp(_RATE * difference * difference)


class Match:
    """History's programs that may be like one under way, and how much each is.

    `arrive` and `answer` cost one kernel per candidate, whatever the program's length.
    """

    def __init__(self, graphs: Sequence[Graph]) -> None:
        self._graphs = list(graphs)
        self._sums = array("d", bytes(8 * len(self._graphs)))
        self._most = 0.0  # what a program alike in everything would have
        self._stage = -1

    def __len__(self) -> int:
        return len(self._graphs)

    def arrive(self, call: Call, prompt: int) -> None:
        """A call came to its place; candidates without its stage are dropped."""
        if call.stage > self._stage:
            self._stage = call.stage
            self._keep([graph.num_stages > call.stage for graph in self._graphs])
            self._most *= MEMORY
            self._sums = array("d", (total * MEMORY for total in self._sums))
        self._most += PROMPT_WEIGHT + NEW_WEIGHT
        whole, new, sums = log1p(prompt), log1p(call.new_tokens), self._sums
        for index, graph in enumerate(self._graphs):
            at = graph.first[call.stage] + call.number
            if at < graph.first[call.stage + 1]:
                one, other = whole - graph.log_prompts[at], new - graph.log_news[at]
                sums[index] += PROMPT_WEIGHT * exp(_RATE * one * one) + NEW_WEIGHT * exp(
                    _RATE * other * other
                )

    def answer(self, call: Call, output: int) -> None:
        """The call at this place ended after so many tokens."""
        self._most += OUTPUT_WEIGHT
        length, sums = log1p(output), self._sums
        for index, graph in enumerate(self._graphs):
            at = graph.first[call.stage] + call.number
            if at < graph.first[call.stage + 1]:
                gap = length - graph.log_outputs[at]
                sums[index] += OUTPUT_WEIGHT * exp(_RATE * gap * gap)
        if len(self._graphs) > NEIGHBOURS:
            least = HOPELESS * max(self._sums)
            self._keep([total >= least for total in self._sums])

    def likeness(self) -> Neighbours:
        """All candidates, each from 0, not alike, to 1, alike in all that is known."""
        most = self._most or 1.0
        pairs = zip(self._graphs, self._sums, strict=True)
        return [(graph, total / most) for graph, total in pairs]

    def repeats(self, *, going_on: bool = False) -> Neighbours:
        """Those alike to the token in all that is known."""
        most = self._most or 1.0
        return [(self._graphs[at], 1.0) for total, at in self._found(going_on) if total >= most]

    def neighbours(self, *, going_on: bool = False) -> Neighbours:
        """The most alike with their weights, best first; all weigh the same where nothing is known.

        With `going_on` only those that have a stage after the present one.
        """
        found = self._found(going_on)
        if not found or found[0][0] <= 0.0:
            return [(self._graphs[index], 1.0) for _, index in found[:NEIGHBOURS]]
        best, power = found[0][0], SHARPNESS * len(found) / (len(found) + FEW)
        return [(self._graphs[i], pow(total / best, power)) for total, i in found[:NEIGHBOURS]]

    def _found(self, going_on: bool) -> list[tuple[float, int]]:
        found = [
            (total, index)
            for index, total in enumerate(self._sums)
            if not going_on or self._graphs[index].num_stages > self._stage + 1
        ]
        found.sort(reverse=True)
        return found

    def _keep(self, which: list[bool]) -> None:
        if not all(which):
            self._graphs = [graph for graph, kept in zip(self._graphs, which, strict=True) if kept]
            sums = (total for total, kept in zip(self._sums, which, strict=True) if kept)
            self._sums = array("d", sums)


def weighted_median(values: list[tuple[float, float]]) -> float:
    """The middle of (value, weight) pairs by weight; between two where it falls between them."""
    values.sort()
    half = sum(weight for _, weight in values) / 2
    below = 0.0
    for index, (value, weight) in enumerate(values):
        below += weight
        if below > half * (1 + 1e-9):
            return value
        if below >= half * (1 - 1e-9) and index + 1 < len(values):
            return (value + values[index + 1][0]) / 2
    return values[-1][0] if values else 0.0
