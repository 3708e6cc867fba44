"""A synchronous engine over a tiny model, and what `transformers` answers on the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from fakes import MockClock
from giusto import build
from giusto.core.clock import Clock
from giusto.core.events import Event, Finished, Rejected, Stepped
from giusto.core.latency import LinearLatency
from giusto.core.request import FinishReason, Reason, Request, SamplingParams, Submission
from giusto.engine.draft import LoadedDraft
from giusto.engine.engine import Engine
from giusto.engine.runner import ModelRunner
from giusto.engine.sampler import Draw, Sampler, TokenPath
from giusto.engine.settings import EngineSettings
from giusto.engine.speculate import DraftModel
from giusto.engine.tensors import KVCache
from giusto.engine.tokenizer import Tokenizer
from giusto.engine.weights import LoadedModel, load_model
from giusto.spec import modes
from giusto.spec.drafter import Drafter
from giusto.spec.guessing import ModelDrafter
from tiny_models import make_tiny

LATENCY = (0.015, 0.0007, 2e-8, 0.0006, 1e-6, 0.0006, 0.001, 0.0, 0.0)
CLEAR_GAP = 1e-3


@dataclass
class Answer:
    """What one sample got."""

    tokens: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    error: str | None = None
    refused: Reason | None = None
    logprobs: list[Any] = field(default_factory=list)
    #: What each token was drawn from, [vocab] each, as the model gave it.
    logits: list[Tensor] = field(default_factory=list)


class RecordingSampler(Sampler):
    """A sampler that keeps the logits of each draw until they are taken, unless it is told not to.

    It then draws one by one what could be drawn at a glance.
    """

    def __init__(
        self, vocab_size: int, eos_token_ids: Sequence[int], *, is_recording: bool = True
    ) -> None:
        super().__init__(vocab_size, eos_token_ids)
        self.is_recording = is_recording
        self._drawn: dict[str, list[Tensor]] = {}

    def is_plain(self, request: Request) -> bool:
        return not self.is_recording and super().is_plain(request)

    def draw(
        self, requests: Sequence[Request], logits: Tensor, paths: Sequence[TokenPath] | None = None
    ) -> list[Draw]:
        for request, row in zip(requests, logits, strict=True) if self.is_recording else ():
            self._drawn.setdefault(request.id, []).append(row.clone())
        return super().draw(requests, logits, paths)

    def take(self, request_id: str) -> list[Tensor]:
        """Hand over the rows that a request's tokens were drawn from since the last call."""
        return self._drawn.pop(request_id, [])


class TinyEngine:
    """An `Engine` with its answers collected; block memory starts as NaN, clock moves by steps."""

    def __init__(
        self,
        model: LoadedModel,
        num_blocks: int = 256,
        drafter: Drafter | None = None,
        draft: LoadedDraft | None = None,
        **settings: Any,
    ) -> None:
        """`drafter` takes the place of the mode's own, where `speculation` names one; or the mode
        drafts with the model `draft`, for so many requests at once as `max_num_seqs`."""
        self.clock = MockClock()
        self.settings = EngineSettings(check=True, seed=5, **settings)
        size = self.settings.block_size
        kv = KVCache(model.config, num_blocks, size, model.decoder.dtype, "cpu")
        for layer in kv.layers:
            layer.keys.fill_(float("nan"))
            layer.values.fill_(float("nan"))
        self.sampler = RecordingSampler(
            model.config.vocab_size,
            model.eos_token_ids,
            is_recording=self.settings.speculation == "off",
        )
        runner = ModelRunner(model.decoder, kv, self.sampler, Tokenizer(model.folder))
        latency = LinearLatency(LATENCY)
        self.scheduler = build.scheduler(self.settings, latency, num_blocks)
        clock: Clock = self.clock
        mode = modes.mode(self.settings.speculation)
        if draft is not None and mode is not None:
            drafter = mode.drafting(DraftModel(draft, self.settings.max_num_seqs))
        speculator = mode and mode.speculator(latency, drafter)
        self.engine = Engine(self.scheduler, runner, clock, latency, Random(5))
        self.engine.speculator = speculator
        self.answers: dict[str, Answer] = {}
        self.events: list[Event] = []
        self.num_prompt_tokens = 0
        self.num_accepted = 0
        self.num_selected = 0

    def submit(self, name: str, prompt: Sequence[int], **options: Any) -> None:
        """Queue a request; options are sampling parameters, or fields of the submission."""
        fields = {k: options.pop(k) for k in ("n", "slo", "cache_salt") if k in options}
        self.engine.submit(
            Submission(
                name,
                self.clock.now(),
                len(prompt),
                prompt_ids=tuple(prompt),
                sampling=SamplingParams(**options),
                **fields,
            )
        )

    def step(self) -> None:
        """Do one step; the clock moves by 10 ms."""
        events, wake_at = self.engine.step()
        self.clock.advance(0.01 if wake_at is None else max(0.01, wake_at - self.clock.now()))
        self.take(events)
        self.scheduler.check()

    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            self.events.append(event)
            match event:
                case Stepped(outcome):
                    self.num_prompt_tokens += outcome.shape.prefill_tokens
                    for name, made in outcome.yields.items():
                        answer = self.answers.setdefault(name, Answer())
                        answer.tokens += made.tokens
                        self.num_accepted += made.accepted
                        self.num_selected += made.selected
                        answer.logprobs += made.logprobs or ()
                        answer.logits += self.sampler.take(name)
                case Finished(name, _, reason, message):
                    answer = self.answers.setdefault(name, Answer())
                    answer.finish, answer.error = reason, message
                case Rejected(name, _, reason):
                    self.answers.setdefault(name, Answer()).refused = reason

    def run(self, most: int = 5000) -> dict[str, Answer]:
        """Step until nothing is left to do, then check that nothing leaked."""
        for _ in range(most):
            if not self.scheduler.has_work:
                break
            self.step()
        self.take(self.engine.take_events())
        self.assert_empty()
        return self.answers

    def assert_empty(self) -> None:
        assert_empty(self.engine)

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)


def assert_empty(engine: Engine) -> None:
    """Nothing is known of any request any more, and all memory is free."""
    scheduler, runner = engine.scheduler, engine.runner
    scheduler.check()
    assert not scheduler.has_work
    assert not scheduler._groups
    assert scheduler.pool.num_free == scheduler.pool.num_blocks
    assert not runner._stops
    assert not runner.sampler._counts
    drafter = engine.speculator.drafter if engine.speculator else None
    if isinstance(drafter, ModelDrafter):
        assert not drafter.guesser._rows


class Reference(NamedTuple):
    """What `transformers` answers: the tokens, and the logits [tokens, vocab] before each."""

    tokens: list[int]
    logits: Tensor

    @property
    def gaps(self) -> Tensor:
        """By how much each most likely token leads the second, [tokens]."""
        best = self.logits.topk(2).values
        return best[:, 0] - best[:, 1]


@dataclass(frozen=True)
class Family:
    """One tiny model, and `transformers` on the same weights."""

    name: str
    folder: Path
    model: LoadedModel
    reference: Any

    def generate(self, prompt: Sequence[int], count: int, forced: Sequence[int] = ()) -> Reference:
        """Greedy answer of `transformers`; it begins with `forced`, whatever is more likely."""
        every = list(range(self.model.config.vocab_size))

        def allowed(_: int, tokens: Tensor) -> list[int]:
            place = len(tokens) - len(prompt)
            return [forced[place]] if place < len(forced) else every

        answer = self.reference.generate(
            torch.tensor([list(prompt)]),
            do_sample=False,
            max_new_tokens=count,
            prefix_allowed_tokens_fn=allowed if forced else None,
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=0,
        )
        return Reference(answer.sequences[0, len(prompt) :].tolist(), torch.cat(answer.logits))


def make_family(folder: Path, name: str, seed: int = 3) -> Family:
    return open_family(make_tiny(folder, name, seed=seed), name)


def open_family(folder: Path, name: str) -> Family:
    """A family whose folder is there already."""
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Family(name, folder, load_model(folder, "float32"), reference)


def random_prompt(length: int, seed: int) -> list[int]:
    draw = Random(seed)
    return [draw.randrange(3, 320) for _ in range(length)]
