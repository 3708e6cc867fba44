"""What speculation is worth on the embedded engine: decode rate by mode, class of prompt and batch.

    python benchmarks/speculation/decode.py [--mode off --mode ngram --mode giusto] [--batch 1,8]
        [--prompts 12] [--tokens 128] [--temperature 0] [--draft-model default]

A mode with `+draft` behind it, such as `giusto+draft`, drafts with `--draft-model` too.

One engine per mode, in process, the same prompts in the same order, the modes in turn group by
group, so that a change of the machine meets all alike. Prompts are the shared data's
(`../shared/data/prompts`, or GIUSTO_DATA), `--prompts` of each class. A rate is output tokens after
the first over the time from the first to the last; the ratio is to the first mode's on the same
group, the median over groups with the range. Tokens per step count all that a verification yields.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from rich.console import Console
from rich.progress import track
from rich.table import Table

from giusto import build
from giusto.core.clock import WallClock
from giusto.core.events import Stepped
from giusto.core.request import SamplingParams, Submission
from giusto.engine.engine import Engine
from giusto.engine.launch import adopt_environment
from giusto.engine.settings import EngineSettings
from giusto.spec import modes
from giusto.spec.guessing import ModelDrafter

CLASSES = ("chat", "code", "math", "summarize")
DATA = Path(os.environ.get("GIUSTO_DATA") or Path(__file__).parents[3] / "shared" / "data")
#: Longer ones would measure prefill.
LONGEST_PROMPT = 1024


@dataclass(frozen=True)
class Group:
    """Prompts that decode together."""

    kind: str
    prompts: tuple[tuple[int, ...], ...]


@dataclass
class Figures:
    """Of one mode on one group: seconds and tokens after the first, and what steps yielded."""

    seconds: float
    tokens: int
    yields: list[int]
    drafted: float
    selected: float

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mode", action="append")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--prompts", type=int, default=12, help="of each class")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--skip", type=int, default=0, help="leave out the first prompts")
    parser.add_argument("--draft-model", default="default", help="of the modes with +draft")
    given = parser.parse_args()
    adopt_environment()
    names = given.mode or ["off", "ngram", "suffix", "giusto"]
    engines = {mode: open_engine(mode, given.draft_model) for mode in names}
    sampling = SamplingParams(
        max_tokens=given.tokens, temperature=given.temperature, ignore_eos=True, seed=1
    )
    for batch in map(int, given.batch.split(",")):
        for mode, engine in engines.items():
            forget_answers(engine, mode)
        groups = list(grouped(engines[names[0]], batch, given.prompts, given.skip))
        found: dict[str, list[Figures]] = defaultdict(list)
        for number, group in enumerate(track(groups, f"batch {batch}")):
            for mode in names:
                found[mode].append(run(engines[mode], group, sampling, f"{batch}.{number}"))
        show(f"batch {batch}, {given.tokens} tokens", names, groups, found)


def open_engine(mode: str, draft_model: str = "default") -> Engine:
    name, _, draft = mode.partition("+")
    settings = EngineSettings(
        speculation=name,
        draft_model=draft_model if draft else None,
        scheduling_policy="fcfs",
        kv_cache_memory=512 << 20,
        seed=0,
    )
    engine, _ = build.engine(settings, WallClock())
    return engine


def forget_answers(engine: Engine, mode: str) -> None:
    """Let a drafter begin anew: prompts come again with another batch size."""
    made = modes.mode(mode.partition("+")[0])
    if made is None or engine.speculator is None:
        return
    old = engine.speculator.drafter
    drafter = made.drafting(old.guesser) if isinstance(old, ModelDrafter) else None
    engine.speculator = made.speculator(engine.latency, drafter)


def grouped(engine: Engine, batch: int, count: int, skip: int) -> Iterator[Group]:
    """Prompts of each class, `batch` at a time."""
    by_class: dict[str, list[tuple[int, ...]]] = {kind: [] for kind in CLASSES}
    tokenizer = engine.runner.tokenizer
    with gzip.open(DATA / "prompts" / "prompts.jsonl.gz", "rt") as file:
        for row in map(json.loads, file):
            if row["prompt_tokens"] <= LONGEST_PROMPT:
                messages = [{"role": "user", "content": row["turns"][0]}]
                ids = tokenizer.encode(tokenizer.render_chat(messages, True), False)
                by_class[row["class"]].append(tuple(ids))
    for kind, prompts in by_class.items():
        chosen = prompts[skip : skip + max(count, batch)]
        for start in range(0, len(chosen) - batch + 1, batch):
            yield Group(kind, tuple(chosen[start : start + batch]))


def run(engine: Engine, group: Group, sampling: SamplingParams, label: str) -> Figures:
    """Decode one group to the end."""
    for number, prompt in enumerate(group.prompts):
        name = f"{label}.{number}"
        now = engine.clock.now()
        engine.submit(Submission(name, now, len(prompt), prompt_ids=prompt, sampling=sampling))
    first = last = 0.0
    tokens = drafted = selected = 0
    yields: list[int] = []
    while engine.scheduler.has_work:
        is_decoding = all(r.num_output_tokens for r in engine.scheduler.requests.values())
        events, _ = engine.step()
        last = engine.clock.now()
        if not is_decoding:
            first = last
            continue
        for event in events:
            if isinstance(event, Stepped):
                for made in event.outcome.yields.values():
                    yields.append(len(made.tokens))
                    tokens += len(made.tokens)
                    drafted += made.drafted
                    selected += made.selected
    count = len(yields)
    return Figures(last - first, tokens, yields, drafted / count, selected / count)


def show(
    title: str, modes: Sequence[str], groups: Sequence[Group], found: dict[str, list[Figures]]
) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("mode")
    for heading in ("tokens/s", "ratio", "range", "tokens/step", *CLASSES, "drafted", "verified"):
        table.add_column(heading, justify="right")
    base = found[modes[0]]
    for mode in modes:
        figures = found[mode]
        ratios = sorted(f.rate / b.rate for f, b in zip(figures, base, strict=True))
        per_class = []
        for kind in CLASSES:
            mine = [
                y for f, g in zip(figures, groups, strict=True) if g.kind == kind for y in f.yields
            ]
            per_class.append(f"{mean(mine):.2f}" if mine else "-")
        table.add_row(
            mode,
            f"{median(f.rate for f in figures):.1f}",
            f"{median(ratios):.2f}",
            f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
            f"{mean([y for f in figures for y in f.yields]):.2f}",
            *per_class,
            f"{mean(f.drafted for f in figures):.1f}",
            f"{mean(f.selected for f in figures):.1f}",
        )
    Console(width=None if Console().is_terminal else 130).print(table)


if __name__ == "__main__":
    main()
