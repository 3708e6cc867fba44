"""Which candidates are right: the target's own draws, walked down each request's tree.

At each node the sampler draws the target's token, exactly as it would have without a tree; where a
child carries that token, the walk goes on from there. So an answer has the target's distribution
whatever was proposed, at any temperature and with penalties; the same seed draws the same tokens.

Source: verification by target samples, as adaserve.md 1.7 describes it for candidates that are not
sampled themselves; the acceptance is that of SpecInfer's rule for such candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from giusto.core.request import FinishReason, Request
from giusto.engine.batch import Head
from giusto.engine.sampler import Draw, Sampler
from giusto.spec.tree import ROOT

#: Whether a token that was drawn after a path ends the answer.
IsLast = Callable[[Request, int, int], bool]


@dataclass(slots=True)
class Walk:
    """The way down one tree: `nodes` that were right, and one draw more than those."""

    head: Head
    draws: list[Draw] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    finish: FinishReason | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(draw.token for draw in self.draws)

    @property
    def row(self) -> int:
        """The row of logits that the next token is drawn from."""
        return self.head.row + 1 + (self.nodes[-1] if self.nodes else ROOT)

    def take(self, draw: Draw, is_last: bool) -> bool:
        """Note a draw; returns whether a child carries it, so that the walk goes on."""
        self.draws.append(draw)
        if is_last:
            self.finish = FinishReason.STOP
            return False
        request, tree = self.head.request, self.head.tree
        if request.num_output_tokens + len(self.draws) >= request.sampling.max_tokens:
            return False
        child = tree.child(self.nodes[-1] if self.nodes else ROOT, draw.token)
        if child is None:
            return False
        self.nodes.append(child)
        return True


def walk(heads: Sequence[Head], logits: Tensor, sampler: Sampler, is_last: IsLast) -> list[Walk]:
    """Draw down all trees at once, level by level; modifies `logits` [rows, vocab].

    `is_last` is asked once for each token that is kept, in order, with how many were kept before it
    in this step.
    """
    walks = [Walk(head) for head in heads]
    if all(sampler.is_plain(head.request) for head in heads):
        # What is likeliest depends on no path: one look at all rows instead of one per level.
        tokens = torch.argmax(logits, dim=-1).tolist()
        for way in walks:
            going_on = True
            while going_on:
                token = tokens[way.row]
                is_end = is_last(way.head.request, token, len(way.draws))
                going_on = way.take(Draw(token), is_end)
        return walks
    going = walks
    while going:
        rows = [way.row for way in going]
        level = logits if len(rows) == len(logits) else logits[rows]
        requests = [way.head.request for way in going]
        draws = sampler.draw(requests, level, [way.tokens for way in going])
        going = [
            way
            for way, draw in zip(going, draws, strict=True)
            if way.take(draw, is_last(way.head.request, draw.token, len(way.draws)))
        ]
    return walks
