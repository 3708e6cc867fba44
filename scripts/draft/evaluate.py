"""What a draft is worth on answers that it has not seen: agreement, and tokens per verification.

    python scripts/draft/evaluate.py [--model PATH] [--data results/draft]

By class, on the held-back greedy answers that `generate --validation` recorded, through the
engine's own drafting. `agreement`: its first choice is the target's. The others are tokens per
step, the target's own counted: chains of four by look-up, by the draft, by look-up with the draft
where that finds nothing; and trees of up to sixteen nodes, of which those less likely than 0.05 are
not verified. `own`: a request looks up its own text alone; `shared`: earlier answers too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from asks import CLASSES
from rich.console import Console
from rich.table import Table
from shards import Answered, read_shard

from giusto.core.plan import Spec
from giusto.engine.draft import load_draft
from giusto.engine.speculate import DraftModel
from giusto.engine.tokenizer import Tokenizer
from giusto.engine.weights import load_model
from giusto.spec.drafter import Ask, Drafter
from giusto.spec.guessing import ModelDrafter, Tips
from giusto.spec.lookup import LookupDrafter
from giusto.spec.ngram import NgramDrafter
from giusto.spec.tree import ROOT, TokenTree

CHAIN, TREE = Spec(depth=4, max_nodes=4), Spec(depth=8, max_nodes=16, width=3)
FLOOR = 0.05


def agreement(rows: Sequence[Answered], model: DraftModel) -> list[float]:
    """Of each class, and of all: how often the draft's first choice is the target's."""
    right = dict.fromkeys(CLASSES, 0)
    count = dict.fromkeys(CLASSES, 0)
    for row in rows:
        tokens = list(row.prompt)
        for token in row.answer:
            ask = Ask("a", tokens, CHAIN, 1)
            (((guess,),),) = model.follow([Tips(ask, TokenTree(), (ROOT,))], 1)
            right[row.kind] += guess[0] == token
            count[row.kind] += 1
            tokens = [*tokens, token]
        model.forget("a")
    shares = [right[kind] / max(1, count[kind]) for kind in CLASSES]
    return [*shares, sum(right.values()) / sum(count.values())]


def replay(
    rows: Sequence[Answered], drafter: Drafter, spec: Spec, floor: float, is_private: bool
) -> list[float]:
    """Of each class, and of all: tokens per step when guessing along the answers."""
    steps = dict.fromkeys(CLASSES, 0)
    tokens = dict.fromkeys(CLASSES, 0)
    for number, row in enumerate(rows):
        known, rest = [*row.prompt, *row.answer[:1]], row.answer[1:]
        while rest:
            ask = Ask(str(number), known, spec, len(rest) - 1, is_private=is_private)
            (tree,) = drafter.draft([ask])
            count = accepted(tree, rest, floor)
            drafter.learn(str(number), tree, rest[:count])
            known, rest = [*known, *rest[:count]], rest[count:]
            steps[row.kind] += 1
            tokens[row.kind] += count
        drafter.forget(str(number))
    means = [tokens[kind] / max(1, steps[kind]) for kind in CLASSES]
    return [*means, sum(means) / len(means)]


def accepted(tree: TokenTree, rest: Sequence[int], floor: float) -> int:
    """Tokens that a step yields: those that were guessed and verified, and the target's own."""
    node = ROOT
    for count, token in enumerate(rest, 1):
        child = tree.child(node, token)
        if child is None or tree.chances[child] < floor:
            return count
        node = child
    return len(rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", help="a folder or hub id; the default model")
    parser.add_argument("--model", default="default", help="the draft: a folder, or default")
    parser.add_argument("--data", type=Path, default=Path("results/draft"))
    parser.add_argument("--per-class", type=int, default=99, help="of either set, at most")
    given = parser.parse_args()
    target = load_model(given.target)
    draft = load_draft(given.model, target, Tokenizer(target.folder))
    model = DraftModel(draft, 2)
    rows = []
    for name in ("validation", "benched"):
        every = read_shard(given.data / f"{name}.npz")
        for kind in CLASSES:
            rows += [row for row in every if row.kind == kind][: given.per_class]
    table = Table("", *CLASSES, "mean", title=f"{len(rows)} held-back answers, greedy")
    with torch.inference_mode():
        table.add_row("agreement", *(f"{share:.3f}" for share in agreement(rows, model)))
        for name, make, spec, is_private in (
            ("chain of 4: look-up (ngram), own", NgramDrafter, CHAIN, True),
            ("chain of 4: draft alone", lambda: ModelDrafter(model), CHAIN, True),
            ("chain of 4: look-up, own", LookupDrafter, CHAIN, True),
            ("chain of 4: look-up and draft, own", lambda: both(model), CHAIN, True),
            ("tree: draft alone", lambda: ModelDrafter(model), TREE, True),
            ("tree: look-up, own", LookupDrafter, TREE, True),
            ("tree: look-up and draft, own", lambda: both(model), TREE, True),
            ("tree: look-up, shared", LookupDrafter, TREE, False),
            ("tree: look-up and draft, shared", lambda: both(model), TREE, False),
        ):
            floor = 0.0 if spec is CHAIN else FLOOR
            means = replay(rows, make(), spec, floor, is_private)
            table.add_row(name, *(f"{each:.2f}" for each in means))
    Console(width=100).print(table)


def both(model: DraftModel) -> ModelDrafter:
    return ModelDrafter(model, look_up=LookupDrafter())


if __name__ == "__main__":
    main()
