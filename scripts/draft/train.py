"""Distil the draft from what `generate` recorded.

    python scripts/draft/train.py [--data results/draft] [--out results/draft/run] [--minutes 40]

Each position learns the target's 32 likeliest tokens and, with `--hard` of the weight, the first of
them. The learning rate falls to zero over the minutes, which count what steps take; a
run that is interrupted goes on from its last checkpoint with the same command. The draft begins as
the first layers of the target, whose embedding it shares; with `--layers-of-target ""` as a smaller
Llama, its embedding the target's in fewer directions. Every few minutes the held-back answers are
looked at, and the best weights written to OUT/model, a Hugging Face folder with its `draft.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import adopted  # noqa: F401  (before torch)
import numpy as np
import torch
from network import Draft, Shape, reduced
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shards import Answered, read_shard
from torch import Tensor

from giusto.build import DEFAULT_MODEL_NAME
from giusto.core.clock import WallClock
from giusto.engine.config import read_config
from giusto.engine.tokenizer import Tokenizer
from giusto.engine.weights import resolve_folder

say = Console(width=120, highlight=False).print
#: Share of the run over which the rate rises, and steps over which the loss is averaged.
WARM_UP, WINDOW = 0.02, 50
#: Rows of the head that are computed at once.
ROWS = 256
#: Seconds that a step counts at most.
LONGEST_STEP = 20.0


@dataclass
class Batch:
    """Rows of similar length: tokens [rows, length], and for each answer token where its state
    is, its targets (columns of the outputs) and their weights, [n, top]."""

    tokens: Tensor
    places: Tensor
    columns: Tensor
    weights: Tensor
    first: Tensor


class Corpus:
    """Answers as tensors; `column` maps ids to outputs, -1 for those that are none."""

    def __init__(self, rows: list[Answered], outputs: Tensor, vocab_size: int, hard: float) -> None:
        self.column = torch.full((vocab_size,), -1)
        self.column[outputs] = torch.arange(len(outputs))
        self.rows = rows
        self.hard = hard

    def batches(self, tokens: int, draw: Random) -> Iterator[Batch]:
        """All rows once, `tokens` of them at a time, in an order of its own."""
        order = sorted(range(len(self.rows)), key=lambda at: self._length(at) + draw.uniform(0, 48))
        groups: list[list[int]] = [[]]
        for at in order:
            if (len(groups[-1]) + 1) * self._length(at) > tokens and groups[-1]:
                groups.append([])
            groups[-1].append(at)
        draw.shuffle(groups)
        return map(self._batch, groups)

    def _length(self, at: int) -> int:
        row = self.rows[at]
        return len(row.prompt) + len(row.answer)

    def _batch(self, group: list[int]) -> Batch:
        rows = [self.rows[at] for at in group]
        # The last token predicts nothing that is known.
        inputs = [[*row.prompt, *row.answer[:-1]] for row in rows]
        length = max(map(len, inputs))
        tokens = torch.tensor([ids + [0] * (length - len(ids)) for ids in inputs])
        places = torch.cat(
            [
                torch.arange(len(row.prompt) - 1, len(row.prompt) - 1 + len(row.answer))
                + number * length
                for number, row in enumerate(rows)
            ]
        )
        ids = torch.from_numpy(np.concatenate([row.top_ids for row in rows]).astype(np.int64))
        chances = torch.from_numpy(
            np.concatenate([row.top_logprobs for row in rows]).astype(np.float32)
        ).exp()
        columns = self.column[ids]
        first = columns[:, 0].clone()
        weights = (1 - self.hard) * chances
        weights[:, 0] += self.hard
        weights = torch.where(columns >= 0, weights, 0.0)
        return Batch(tokens, places, columns.clamp(min=0), weights, first)


class _HeadLoss(torch.autograd.Function):
    """Cross-entropy of a head, a few rows at a time: all logits at once would be the largest
    tensor by far, and are needed only for a moment."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, columns: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses [n] and first choices [n] of states [n, hidden] under a head [outputs, hidden].

        The loss is summed over rows when its gradient is taken.
        """
        losses, firsts, to_states = [], [], []
        to_head = torch.zeros_like(head) if head.requires_grad else None
        for start in range(0, len(states), ROWS):
            span = slice(start, start + ROWS)
            part, column, weight = states[span], columns[span], weights[span]
            logits = (part @ head.T).float()
            firsts.append(logits.argmax(-1))
            total = weight.sum(-1)
            most = logits.logsumexp(-1)
            losses.append(total * most - (weight * logits.gather(1, column)).sum(-1))
            slopes = (logits - most[:, None]).exp_().mul_(total[:, None])
            slopes = slopes.scatter_add_(1, column, -weight).to(part.dtype)
            to_states.append(slopes @ head)
            if to_head is not None:
                to_head += slopes.T @ part
        ctx.save_for_backward(torch.cat(to_states), to_head)
        firsts_ = torch.cat(firsts)
        ctx.mark_non_differentiable(firsts_)
        return torch.cat(losses), firsts_

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        to_states, to_head = ctx.saved_tensors
        # All losses count alike: their mean, or their sum.
        scale = slope[0]
        return to_states * scale, None if to_head is None else to_head * scale, None, None


def losses(model: Draft, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy with the target's distribution, and the draft's first choices, [n] each."""
    with torch.autocast(batch.tokens.device.type, torch.bfloat16):
        states = model(batch.tokens).flatten(0, 1)[batch.places]
    head = model.head().to(torch.bfloat16)
    return _HeadLoss.apply(states.to(torch.bfloat16), head, batch.columns, batch.weights)


@torch.inference_mode()
def agreement(model: Draft, batches: Iterable[Batch]) -> tuple[float, float]:
    """Share of positions where both hold the same token likeliest; and the loss."""
    model.eval()
    right = count = 0
    total = 0.0
    for batch in batches:
        loss, firsts = losses(model, batch)
        right += int((firsts == batch.first).sum())
        total += float(loss.sum())
        count += len(loss)
    model.train()
    return right / count, total / count


def choose_outputs(rows: list[Answered], vocab_size: int, count: int) -> Tensor:
    """The ids that the target holds likely most often, ascending."""
    mass = np.zeros(vocab_size)
    for row in rows:
        chances = np.exp(row.top_logprobs.astype(np.float32))
        chances[:, 0] += 1.0
        np.add.at(mass, row.top_ids.astype(np.int64).ravel(), chances.ravel())
    return torch.from_numpy(np.sort(np.argsort(-mass)[:count]).copy())


def optimiser(model: Draft, rate: float, decay: float) -> torch.optim.AdamW:
    matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and name != "embedding"]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": decay, "scale": 1.0},
        {"params": [model.embedding], "weight_decay": 0.0, "scale": 0.5},
        {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


class Run:
    """One training run and its files in `out`."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.out: Path = given.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(given.seed)
        folder = resolve_folder(given.target)
        self.target = folder.name if given.target else DEFAULT_MODEL_NAME
        self.tokenizer = Tokenizer(folder)
        embedding = _embedding(folder)
        shards = sorted(given.data.glob("train-*.npz"))
        rows = [row for path in shards for row in read_shard(path)]
        held_back = [
            row
            for name in ("validation", "benched")
            for row in read_shard(given.data / f"{name}.npz")
        ]
        vocab_size = embedding.shape[0]
        self.outputs = choose_outputs(rows, vocab_size, given.outputs)
        taken = [int(number) for number in given.layers_of_target.split(",") if number]
        shape = self._shape(folder, len(taken))
        self.model = Draft(shape, self.outputs, given.dropout)
        if taken:
            self.model.begin_with(load_file(folder / "model.safetensors"), taken)
            self.model.embedding.requires_grad_(False)
        else:
            self.model.embedding.data = reduced(embedding, given.hidden)
        self.model.to(self.device)
        self.corpus = Corpus(rows, self.outputs, vocab_size, given.hard)
        self.held_back = Corpus(
            [replace(row, prompt=row.prompt[-320:]) for row in held_back],
            self.outputs,
            vocab_size,
            given.hard,
        )
        self.optimiser = optimiser(self.model, given.rate, given.decay)
        self.spent = 0.0
        self.steps = 0
        self.best = 0.0
        tokens = sum(len(row.answer) for row in rows)
        covered = self.held_back.column[
            torch.tensor([token for row in held_back for token in row.answer])
        ]
        say(
            f"{len(rows)} answers of {tokens} tokens; {len(self.outputs)} outputs cover "
            f"{100 * float((covered >= 0).float().mean()):.1f} % of the held-back answers; "
            f"{sum(p.numel() for p in self.model.parameters()) / 1e6:.1f} M parameters"
        )

    def _shape(self, folder: Path, num_taken: int) -> Shape:
        """Layers like the target's where they begin as its own, else as given."""
        given, config = self.given, read_config(folder)
        if not num_taken:
            heads = given.hidden // 64
            return Shape(config.vocab_size, given.hidden, given.layers, heads, heads, given.ffn)
        is_plain = config.family == "llama" and config.rope.kind == "default"
        if not is_plain or config.qkv_bias or config.mlp_bias or not config.tied_embeddings:
            sys.exit('this target has layers of another kind: give --layers-of-target ""')
        return Shape(
            config.vocab_size,
            config.hidden_size,
            num_taken,
            config.num_heads,
            config.num_kv_heads,
            config.intermediate_size,
            theta=config.rope_theta,
            eps=config.rms_norm_eps,
        )

    def train(self) -> None:
        self._resume()
        limit = 60 * self.given.minutes
        clock = WallClock()
        looked, recent = self.spent, deque([0.0], WINDOW)
        epoch = 0
        draw = Random(f"{self.given.seed} {self.steps}")
        while self.spent < limit:
            for batch in self.corpus.batches(self.given.batch, draw):
                started = clock.now()
                recent.append(self._step(_to(batch, self.device), self.spent / limit))
                # A pause in between, of this process or of the machine, is no training.
                self.spent += min(clock.now() - started, LONGEST_STEP)
                if self.spent >= limit:
                    break
                if self.spent - looked > 60 * self.given.every:
                    looked = self.spent
                    self._look(mean(recent), epoch)
            epoch += 1
        self._look(mean(recent), epoch)

    def _step(self, batch: Batch, share: float) -> float:
        scale = min(1.0, share / WARM_UP) * (1 - share)
        for group in self.optimiser.param_groups:
            group["lr"] = self.given.rate * group["scale"] * max(scale, 1e-3)
        loss = losses(self.model, batch)[0].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.steps += 1
        return float(loss.detach())

    def _look(self, loss: float, epoch: int) -> None:
        batches = self.held_back.batches(self.given.batch, Random(0))
        share, held_back = agreement(self.model, (_to(batch, self.device) for batch in batches))
        say(
            f"{self.spent / 60:5.1f} min  step {self.steps}  epoch {epoch}  loss {loss:.3f}  "
            f"held back {held_back:.3f}  agreement {share:.4f}"
        )
        if share > self.best:
            self.best = share
            self.export(self.out / "model")
        self._keep()

    def export(self, folder: Path) -> None:
        """Write the folder that engines load."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = self.model.to_hub()
        shares = not self.model.embedding.requires_grad
        if shares:
            del tensors["model.embed_tokens.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.model.shape.config(), indent=1) + "\n")
        facts = {
            "target": self.target,
            "tokenizer": self.tokenizer.fingerprint,
            "shares_embedding": shares,
            "output_tokens": self.outputs.tolist(),
        }
        (folder / "draft.json").write_text(json.dumps(facts) + "\n")

    def _keep(self) -> None:
        """Write a checkpoint: weights, moments, and how far the run is."""
        state = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            state |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
        facts = {"spent": self.spent, "steps": self.steps, "best": self.best}
        part = self.out / "checkpoint.part"
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
        save_file(tensors, part, {"facts": json.dumps(facts)})
        os.replace(part, self.out / "checkpoint.safetensors")

    def _resume(self) -> None:
        path = self.out / "checkpoint.safetensors"
        if not path.exists():
            return
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
        state = load_file(path, device=self.device)
        self.model.load_state_dict(
            {n.removeprefix("model."): t for n, t in state.items() if n.startswith("model.")}
        )
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("adam."):
                _, number, key = name.split(".")
                moments.setdefault(int(number), {})[key] = tensor
        whole = self.optimiser.state_dict() | {"state": moments}
        self.optimiser.load_state_dict(whole)
        self.spent, self.steps, self.best = facts["spent"], facts["steps"], facts["best"]
        say(f"going on after {self.spent / 60:.1f} minutes, {self.steps} steps")


def _embedding(folder: Path) -> Tensor:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return file.get_tensor("model.embed_tokens.weight")


def _to(batch: Batch, device: str) -> Batch:
    return Batch(**{name: tensor.to(device) for name, tensor in vars(batch).items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", help="a folder or hub id; the default model")
    parser.add_argument("--data", type=Path, default=Path("results/draft"))
    parser.add_argument("--out", type=Path, default=Path("results/draft/run"))
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--every", type=float, default=3, help="minutes between looks")
    parser.add_argument("--hidden", type=int, default=192, help="without layers of the target")
    parser.add_argument("--layers", type=int, default=2, help="the same")
    parser.add_argument("--layers-of-target", default="0,1", help="it begins with; empty for none")
    parser.add_argument("--ffn", type=int, default=640, help="the same")
    parser.add_argument("--outputs", type=int, default=8192, help="size of the head")
    parser.add_argument("--batch", type=int, default=4096, help="tokens of a step")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--hard", type=float, default=0.5, help="weight of the first choice")
    parser.add_argument("--seed", type=int, default=1)
    Run(parser.parse_args()).train()


if __name__ == "__main__":
    main()
