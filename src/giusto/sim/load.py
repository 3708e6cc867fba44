"""Who arrives in a simulated run: a workload by name, file or reader, at a rate, with a seed."""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from giusto.core.errors import ConfigError
from giusto.core.latency import BatchShape
from giusto.core.slo import SLO
from giusto.profiles.profile import Profile
from giusto.workload import mix, mixed, readers, records
from giusto.workload.answers import Answers
from giusto.workload.arrivals import POISSON, Process
from giusto.workload.records import Entry, promised
from giusto.workload.rescale import repeated, rescaled, taken
from giusto.workload.samples import SAMPLES, spec


@dataclass(frozen=True, slots=True)
class Load:
    """`rate` in arrivals per second, a program counting as one; None keeps a trace's own times.

    Built-in workloads have 1 per second and 300 s where nothing is said, but for those that say
    so themselves (`mix.DURATIONS`). `seed` fixes arrivals and contents of what is generated; a
    trace has its own.
    """

    workload: str = mixed.NAME
    rate: float | None = None
    seed: int = 0
    duration: float | None = None
    count: int | None = None
    process: Process = field(default_factory=Process)
    answers: Answers = field(default_factory=Answers)
    answers_seed: int = 0

    def __post_init__(self) -> None:
        if self.duration is not None and not 0 < self.duration < math.inf:
            raise ConfigError(
                f"duration must be above 0 and finite, got {self.duration}; for a number of "
                "arrivals give num_prompts alone"
            )

    @property
    def path(self) -> Path:
        """The file that is read; where nothing is read, no file has this name."""
        if Path(self.workload).is_file():
            return Path(self.workload)
        return Path(self.workload.partition(":")[2].partition("#")[0])


def names() -> tuple[str, ...]:
    """The built-in workloads, samples of traces among them."""
    return (mixed.NAME, *mix.MIXES, *SAMPLES)


def generated() -> tuple[str, ...]:
    """Those of them that are drawn anew at any rate."""
    return (mixed.NAME, *mix.MIXES)


def check(workload: str) -> None:
    """Raise ConfigError, with what exists, unless `workload` is a name, a file or a reader's."""
    if workload in names() or Path(workload).is_file():
        return
    reader, separator, _ = workload.partition(":")
    if separator and reader in readers.READERS:
        return
    near = difflib.get_close_matches(workload, names(), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"no workload {workload!r}; {hint}there are {', '.join(names())}, JSON Lines files, and "
        f"reader:path with the readers {', '.join(readers.READERS)}"
    )


def entries(load: Load, profile: Profile, slos: Mapping[str, SLO]) -> list[Entry]:
    """The entries of a run; `slos` are the promises of classes that bring none."""
    check(load.workload)
    rate = 1.0 if load.rate is None else load.rate
    if load.workload == mixed.NAME:
        made = mixed.counted(
            mixed.entries(
                mixed.Load(
                    rate=rate,
                    seed=load.seed,
                    process=load.process,
                    duration=_duration(load),
                    count=load.count,
                )
            )
        )
    elif load.workload in mix.MIXES:
        made = mix.build(
            load.workload,
            rate,
            load.seed,
            _duration(load),
            count=load.count,
            unit=unit_of(profile),
            process=load.process,
        )
    else:
        made = _trace(load, profile)
    made = taken(made, duration=load.duration, count=load.count)
    if not made:
        raise ConfigError(f"nothing of workload {load.workload} arrives in the time given")
    return load.answers.fill(promised(made, slos), load.answers_seed)


def _duration(load: Load) -> float:
    if load.duration is not None:
        return load.duration
    if load.count is not None:
        return math.inf
    return mix.DURATIONS.get(load.workload, mixed.DURATION)


def unit_of(profile: Profile) -> mix.Unit:
    """What the idle machine gives: the yardstick of the built-in mixes' promises."""
    prompt = profile.latency.step_time(BatchShape(prefill_tokens=mix.TYPICAL))
    token = profile.latency.step_time(BatchShape(decode_seqs=1, kv_tokens=mix.TYPICAL))
    return mix.Unit(prompt, token)


def _trace(load: Load, profile: Profile) -> list[Entry]:
    path = Path(load.workload)
    if path.is_file():
        made = records.read(path)
        trace = readers.Trace(path.name, made, is_timed=any(e.arrival for e in made))
    else:
        # With a time limit too the first `count` may not do: those that come early are wanted.
        limit = load.count if load.duration is None else None
        options = readers.Options(seed=load.seed, slo_unit=profile.slo_unit, limit=limit)
        is_sample = load.workload in SAMPLES
        trace = readers.read(spec(load.workload) if is_sample else load.workload, options)
    if trace.is_timed and load.process != POISSON:
        raise ConfigError(
            f"{load.workload} has arrival times of its own: leave arrivals and burstiness out"
        )
    if load.rate is None and trace.is_timed:
        return trace.entries
    rate = 1.0 if load.rate is None else load.rate
    return rescaled(
        trace.entries if trace.is_timed else _enough(trace.entries, load, rate),
        rate,
        rng=random.Random(f"{load.seed} arrivals"),
        is_timed=trace.is_timed,
        process=load.process,
    )


def _enough(lengths: list[Entry], load: Load, rate: float) -> list[Entry]:
    """Repeat a list that is shorter than what was asked for."""
    if load.duration is not None:
        # Twice what is likely; `taken` cuts it at the time.
        likely = 2 * math.ceil(rate * load.duration) + 100
        return repeated(lengths, min(likely, load.count or likely))
    return lengths if load.count is None else repeated(lengths, load.count)
