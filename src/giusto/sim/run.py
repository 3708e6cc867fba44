"""One simulated run, from its settings to a flat object of figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from giusto.core.errors import ConfigError
from giusto.core.slo import SLO, Delivery
from giusto.metrics.distributions import distributions, timeline
from giusto.metrics.record_file import RecordFile
from giusto.metrics.records import Record
from giusto.metrics.summary import summarize
from giusto.sim import load as loading
from giusto.sim.cluster import Cluster
from giusto.sim.load import Load
from giusto.sim.settings import SimSettings
from giusto.workload import mix, mixed
from giusto.workload.mixed import ClassTimes
from giusto.workload.records import Entry

#: Makes the replicas of a run; `build.cluster`.
Sink = Callable[[tuple[Record, ...]], None]
MakeCluster = Callable[[SimSettings, Sequence[Entry], Sink], Cluster]


@dataclass(frozen=True, slots=True)
class SimRun:
    """One cell of a table. `slo_scale` is for `mixed`, whose promises are multiples of idle times.

    `label` is the policy with its options, as the user wrote it; `records` is a file for the
    records, written as requests end. What arrives in the first `warmup` seconds is served but not
    counted; None is the workload's own, 0 for most.
    """

    settings: SimSettings
    load: Load
    label: str
    slo_scale: float = 3.0
    records: Path | None = None
    warmup: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.slo_scale < math.inf:
            raise ConfigError(f"slo_scale must be above 0 and finite, got {self.slo_scale}")
        if not 0 <= self.uncounted < math.inf:
            raise ConfigError(f"warmup must be at least 0 and finite, got {self.warmup}")

    @property
    def uncounted(self) -> float:
        """Seconds from the start whose arrivals no figure counts."""
        if self.warmup is None:
            return mix.WARMUPS.get(self.load.workload, 0.0)
        return self.warmup

    @property
    def about(self) -> dict[str, Any]:
        """What the run was: equal for equal runs, different for different ones."""
        settings, load = self.settings, self.load
        limits = settings.limits
        return {
            "backend": "simulator",
            "policy": self.label,
            "model_id": settings.profile.model,
            "profile": settings.profile.name,
            "workload": load.workload,
            # Files may change under their names.
            "digests": [
                _digest(repr(settings.profile).encode()),
                _file_digest(load.path),
                _file_digest(Path(settings.policy)),
            ],
            "request_rate": load.rate,
            "arrivals": load.process.name,
            "burstiness": load.process.burstiness,
            "duration_asked": load.duration,
            "num_prompts_asked": load.count,
            "seed": load.seed,
            # None for none: result files from before there was a warm-up are still known.
            "warmup": self.uncounted or None,
            "answers": [load.answers.early, load.answers.shape, load.answers_seed],
            "slo_scale": self.slo_scale if load.workload == mixed.NAME else None,
            "replicas": settings.replicas,
            "router": settings.router if settings.replicas > 1 else None,
            "max_num_seqs": limits.max_num_seqs,
            "max_num_batched_tokens": limits.max_num_batched_tokens,
            "num_blocks": settings.num_blocks or settings.profile.num_blocks,
            "prefix_caching": settings.prefix_caching,
            "lookahead": settings.lookahead,
            "lengths": settings.lengths,
            "programs": settings.programs,
            "speculation": settings.speculation,
            "model_error": settings.model_error,
            "noise": settings.profile.noise if settings.noise is None else settings.noise,
            "speed": settings.speed,
            "swap_space": settings.swap_space,
            "overlap": settings.overlap,
            "classes": {name: repr(terms) for name, terms in settings.classes.items()},
        }


def simulate(
    run: SimRun,
    make: MakeCluster,
) -> dict[str, Any]:
    """Run it; returns what it was and its figures. Raises ConfigError."""
    slos = {name: terms.slo for name, terms in run.settings.classes.items() if terms.slo}
    slos |= promises(run, make)
    entries = loading.entries(run.load, run.settings.profile, slos)
    records: list[Record] = []
    if run.records is None:
        outcome = make(run.settings, entries, records.extend).run(entries)
    else:
        with RecordFile(run.records) as file:

            def keep(ended: tuple[Record, ...]) -> None:
                records.extend(ended)
                file.write(ended)

            outcome = make(run.settings, entries, keep).run(entries)
    lengths = {
        entry.id: min(entry.output_tokens, entry.max_tokens)
        for entry in entries
        if entry.output_tokens is not None
    }
    counted = _counted(records, run.uncounted)
    errors = Counter(r.error or r.refused for r in counted if r.error or r.refused)
    return {
        **run.about,
        "num_prompts": len(entries),
        "num_steps": outcome.num_steps,
        **summarize(counted, recorded=lengths),
        "errors": dict(errors.most_common(5)),
        "distributions": distributions(counted),
        # The course of the whole run, its beginning too.
        "timeline": timeline(records),
    }


def _counted(records: Sequence[Record], since: float) -> Sequence[Record]:
    """Those that arrived at `since` or later; a program's calls go by the program's opening."""
    if not since:
        return records
    counted = [r for r in records if (r.program.opened if r.program else r.arrival) >= since]
    if not counted:
        raise ConfigError(
            f"nothing arrives after the first {since:g} s, which are not counted: give more time, "
            "or a smaller warmup"
        )
    return counted


def promises(run: SimRun, make: MakeCluster) -> Mapping[str, SLO]:
    """What classes without an SLO of their own are promised: multiples of the idle machine's."""
    if run.load.workload != mixed.NAME:
        return {}
    quiet = replace(
        run.settings,
        policy="fcfs",
        policy_options={},
        replicas=1,
        noise=0.0,
        model_error=0.0,
        speed=1.0,
    )
    times: dict[str, ClassTimes] = {}
    for name, units in mixed.calibration().items():
        counted = [mixed.counted(unit) for unit in units]
        times[name] = ClassTimes.of([_alone(quiet, unit, make) for unit in counted])
    return mixed.promises(times, run.slo_scale)


def _alone(settings: SimSettings, unit: Sequence[Entry], make: MakeCluster) -> list[Delivery]:
    """What one arrival gets of a machine that does nothing else."""
    records: list[Record] = []
    make(settings, unit, records.extend).run(unit)
    if not all(record.is_answered for record in records):
        raise ConfigError(
            f"profile {settings.profile.name} is too small for the workload: even alone, "
            f"{records[0].id} is refused ({records[0].refused})"
        )
    return [record.delivery for record in records]


@cache
def _file_digest(path: Path) -> str | None:
    """A fingerprint of what a file holds; None where there is no such file."""
    return _digest(path.read_bytes()) if path.is_file() else None


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=8).hexdigest()
