"""How many tokens a step a drafter's guesses are worth, without a model in the loop.

    python benchmarks/speculation/replay.py [--temperature 0] [--prompts 20] [--skip 12]
        [--tokens 160] [--answers FILE] [--draft-model default]

Answers are the default model's own, recorded once (to FILE, and read from it when it is there).
Then each drafter guesses along them, request after request in the same order, classes one after the
other: what was answered to earlier ones is known to later ones, as on a server. `floor`: candidates
less likely than this are not verified, which stands for their price. Tokens per step count the
target's own; `verified` is candidates per step; the last column is microseconds of one draft. With
`--draft-model` a draft model guesses too: alone in chains and trees, and beside look-up.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from decode import CLASSES, grouped, open_engine
from rich.console import Console
from rich.table import Table

from giusto.core.events import Stepped
from giusto.core.plan import Spec
from giusto.core.request import SamplingParams, Submission
from giusto.engine.draft import load_draft
from giusto.engine.launch import adopt_environment
from giusto.engine.speculate import DraftModel
from giusto.engine.tokenizer import Tokenizer
from giusto.engine.weights import load_model
from giusto.spec.drafter import Ask, Drafter
from giusto.spec.guessing import ModelDrafter
from giusto.spec.lookup import LookupDrafter
from giusto.spec.ngram import NgramDrafter
from giusto.spec.suffix import SuffixDrafter
from giusto.spec.tree import ROOT, TokenTree

FLOORS = (0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Answered:
    """One prompt with the target's answer."""

    kind: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def record(given: argparse.Namespace) -> list[Answered]:
    """The target's answers, all prompts at once."""
    adopt_environment()
    engine = open_engine("off")
    groups = list(grouped(engine, 1, given.prompts, given.skip))
    sampling = SamplingParams(
        max_tokens=given.tokens, temperature=given.temperature, ignore_eos=True, seed=1
    )
    answers: dict[str, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        (prompt,) = group.prompts
        ask = Submission(str(number), 0.0, len(prompt), prompt_ids=prompt, sampling=sampling)
        engine.submit(ask)
    while engine.scheduler.has_work:
        for event in engine.step()[0]:
            if isinstance(event, Stepped):
                for name, made in event.outcome.yields.items():
                    answers[name] += made.tokens
    return [
        Answered(group.kind, group.prompts[0], tuple(answers[str(number)]))
        for number, group in enumerate(groups)
    ]


def right(tree: TokenTree, rest: tuple[int, ...], kept: set[int]) -> int:
    """Tokens that a step yields: those that were guessed and kept, and the target's own."""
    node = ROOT
    for count, token in enumerate(rest, 1):
        child = tree.child(node, token)
        if child is None or child not in kept:
            return count
        node = child
    return len(rest)


def replay(rows: list[Answered], drafter: Drafter, spec: Spec, floor: float) -> list[str]:
    """Guess along all answers; a row of the table."""
    steps: dict[str, int] = defaultdict(int)
    tokens: dict[str, int] = defaultdict(int)
    verified = 0
    seconds = 0.0
    for number, row in enumerate(rows):
        known, rest = [*row.prompt, *row.answer[:1]], row.answer[1:]
        while rest:
            started = perf_counter()
            (tree,) = drafter.draft([Ask(str(number), known, spec, len(rest) - 1)])
            seconds += perf_counter() - started
            kept = {node for node in range(len(tree)) if tree.chances[node] >= floor}
            count = right(tree, rest, kept)
            drafter.learn(str(number), tree, rest[:count])
            known += rest[:count]
            rest = rest[count:]
            steps[row.kind] += 1
            tokens[row.kind] += count
            verified += len(kept)
        drafter.forget(str(number))
    all_steps = sum(steps.values())
    return [
        f"{sum(tokens.values()) / all_steps:.2f}",
        *(f"{tokens[kind] / steps[kind]:.2f}" for kind in CLASSES),
        f"{verified / all_steps:.1f}",
        f"{1e6 * seconds / all_steps:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--prompts", type=int, default=20, help="of each class")
    parser.add_argument("--skip", type=int, default=12, help="leave out the first prompts")
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--draft-model", help="a folder, or default")
    given = parser.parse_args()
    if given.answers and given.answers.exists():
        content = json.loads(given.answers.read_text())
        rows = [Answered(r["kind"], tuple(r["prompt"]), tuple(r["answer"])) for r in content]
    else:
        rows = record(given)
        if given.answers:
            given.answers.write_text(json.dumps([asdict(row) for row in rows]))
    table = Table("drafter", "floor", "tokens/step", *CLASSES, "verified", "us")
    chain, tree = Spec(depth=4, max_nodes=4), Spec(depth=8, max_nodes=16, width=3)
    wide = Spec(depth=16, max_nodes=16, width=4)
    table.add_row("ngram:4", "", *replay(rows, NgramDrafter(), chain, 0.0))
    table.add_row("suffix:16", "", *replay(rows, SuffixDrafter(), wide, 0.0))
    for floor in FLOORS:
        table.add_row("giusto:8", f"{floor:g}", *replay(rows, LookupDrafter(), tree, floor))
    if given.draft_model:
        model = open_draft(given.draft_model)
        table.add_row("draft, chain of 4", "", *replay(rows, ModelDrafter(model), chain, 0.0))
        for floor in FLOORS:
            table.add_row(
                "draft, tree", f"{floor:g}", *replay(rows, ModelDrafter(model), tree, floor)
            )
        for floor in FLOORS:
            both = ModelDrafter(model, look_up=LookupDrafter())
            table.add_row("giusto:8 and draft", f"{floor:g}", *replay(rows, both, tree, floor))
    Console().print(table)


def open_draft(name: str) -> DraftModel:
    target = load_model()
    return DraftModel(load_draft(name, target, Tokenizer(target.folder)), 2)


if __name__ == "__main__":
    main()
