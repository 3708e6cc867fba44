"""Records into verdicts: one per request, and one per program for the calls judged with it.

All SLO arithmetic is `core.slo`'s; this module only decides what is one unit of counting. The
samples of one submission (`n` > 1) are one unit: it is attained when all of them are, and its
prompt earns once. A program's value is that of the calls judged with it; its end is the last end
of its calls, those with an SLO of their own included, best effort ones not. Calls that it makes
once it is missed are served as best effort, but count with it, not beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from giusto.core.slo import (
    CUT_OFF,
    SLO,
    SOFT,
    BestEffort,
    Program,
    Value,
    is_adaserve_attained,
    is_attained,
    is_strictly_attained,
    kind,
    possible_gain,
    program_gain,
    service_gain,
)
from giusto.metrics.records import Record, by_group

#: Output tokens that a record which did not end normally would have had, and whether that number
#: is an estimate rather than a recorded length.
LengthOf = Callable[[Record], tuple[float, bool]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One unit of counting, judged by what it was promised on arrival.

    A cancelled one counts nowhere else. `gain` and `possible` are 0 for best effort; `cutoff` is
    the gain with alpha = inf; `estimated` is the part of `possible` that rests on an estimated
    output length. `took` is the seconds to its end, inf when it did not end normally.
    """

    service_class: str
    slo: SLO
    records: tuple[Record, ...]
    is_cancelled: bool
    is_attained: bool
    is_strict: bool
    is_adaserve: bool
    took: float
    gain: float
    cutoff: float
    possible: float
    estimated: float

    @property
    def kind(self) -> str:
        return kind(self.slo)

    @property
    def is_best_effort(self) -> bool:
        return isinstance(self.slo, BestEffort)

    @property
    def output_tokens(self) -> int:
        return sum(len(record.token_times) for record in self.records)


def judge(samples: Sequence[Record], length_of: LengthOf, value: Value = SOFT) -> Verdict:
    """Judge one submission that stands alone, from the records of all its samples."""
    slo = samples[0].slo
    met = [is_attained(slo, s.delivery, s.origin) for s in samples]
    cancelled = [s.is_cancelled for s in samples]
    possible, estimated = _possible(samples, length_of, value)
    return Verdict(
        service_class=samples[0].service_class,
        slo=slo,
        records=tuple(samples),
        is_cancelled=any(cancelled) and all(m or c for m, c in zip(met, cancelled, strict=True)),
        is_attained=all(met),
        is_strict=all(is_strictly_attained(slo, s.delivery, s.origin) for s in samples),
        is_adaserve=all(is_adaserve_attained(slo, s.delivery, s.origin) for s in samples),
        took=max(s.delivery.e2e for s in samples),
        gain=_earned(samples, value),
        cutoff=_earned(samples, CUT_OFF),
        possible=possible,
        estimated=estimated,
    )


def judge_program(
    calls: Sequence[Sequence[Record]], length_of: LengthOf, value: Value = SOFT
) -> Verdict:
    """Judge a program from its calls, each the records of its samples."""
    records = tuple(record for call in calls for record in call)
    deadline, opened = _terms(records)
    slo = Program(deadline)
    members = _members(calls)
    belongs = {id(record) for call in members for record in call}
    binding = [r for r in records if id(r) in belongs or not isinstance(r.slo, BestEffort)]
    binding = binding or list(records)
    failed = any(not r.is_answered and not r.is_cancelled for r in binding)
    is_cancelled = not failed and any(r.is_cancelled for r in binding)
    ended = None
    if not failed and not is_cancelled:
        ended = max(r.arrival + r.delivery.e2e for r in binding)
    parts = [_possible(call, length_of, value) for call in members]
    met = ended is not None and ended <= opened + deadline

    def earned(prices: Value) -> float:
        return sum(
            program_gain(slo, opened, ended, [_size(call)], prices, call[0].weight)
            for call in members
        )

    return Verdict(
        service_class=(members[0] if members else calls[0])[0].service_class,
        slo=slo,
        records=records,
        is_cancelled=is_cancelled,
        is_attained=met,
        is_strict=met,
        is_adaserve=met,
        took=math.inf if ended is None else ended - opened,
        gain=earned(value),
        cutoff=earned(CUT_OFF),
        possible=sum(possible for possible, _ in parts),
        estimated=sum(estimated for _, estimated in parts),
    )


def verdicts(records: Iterable[Record], length_of: LengthOf, value: Value = SOFT) -> list[Verdict]:
    """Judge all units among `records`, in order of first appearance, programs last."""
    groups = by_group(records)
    programs: dict[tuple[str, float], list[list[Record]]] = {}
    for samples in groups.values():
        if (program := samples[0].program) is not None:
            programs.setdefault((program.id, program.opened), []).append(samples)
    promised = [
        calls
        for calls in programs.values()
        if any(call[0].program and call[0].program.deadline is not None for call in calls)
    ]
    members = {call[0].group for calls in promised for call in _members(calls)}
    judged = [
        judge(samples, length_of, value)
        for group, samples in groups.items()
        if group not in members
    ]
    return judged + [judge_program(calls, length_of, value) for calls in promised]


def _members(calls: Sequence[Sequence[Record]]) -> list[Sequence[Record]]:
    """The calls that are judged with their program, those it made after it was lost included."""
    deadline, opened = _terms([record for call in calls for record in call])
    lost = opened + deadline
    for call in calls:
        if isinstance(call[0].slo, Program):
            failed = (r.closed for r in call if not r.is_answered and not r.is_cancelled)
            lost = min(lost, *(closed for closed in failed if closed is not None), lost)
    return [
        call
        for call in calls
        if isinstance(call[0].slo, Program)
        or (isinstance(call[0].slo, BestEffort) and call[0].arrival > lost)
    ]


def _terms(records: Sequence[Record]) -> tuple[float, float]:
    """Deadline and opening of the program of `records`."""
    for record in records:
        if record.program is not None and record.program.deadline is not None:
            return record.program.deadline, record.program.opened
    raise ValueError("no call of the program states its deadline")


def _size(samples: Sequence[Record]) -> tuple[int, int]:
    """Prompt tokens, once, and output tokens of all samples."""
    return samples[0].prompt_tokens, sum(len(s.token_times) for s in samples)


def _earned(samples: Sequence[Record], value: Value) -> float:
    first, *others = samples
    gain = service_gain(first.slo, first.delivery, value, first.weight)
    for sample in others:
        without_prompt = replace(sample.delivery, prompt_tokens=0)
        gain += service_gain(sample.slo, without_prompt, value, sample.weight)
    return gain


def _possible(samples: Sequence[Record], length_of: LengthOf, value: Value) -> tuple[float, float]:
    """Possible gain of one submission, and the part of it that rests on an estimate."""
    possible = estimated = 0.0
    for index, sample in enumerate(samples):
        prompt = sample.prompt_tokens if index == 0 else 0
        length, is_estimate = float(len(sample.token_times)), False
        if not sample.is_answered:
            expected, is_estimate = length_of(sample)
            length = max(length, expected)
        part = possible_gain(sample.slo, prompt, length, value, sample.weight)
        possible += part
        estimated += part if is_estimate else 0.0
    return possible, estimated
